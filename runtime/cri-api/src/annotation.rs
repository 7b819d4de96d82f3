//! What node agent and runtime tell each other by annotation, beyond CRI's own fields.

/// On the config of a sandbox, `true`: some of its containers are Linux containers, so it needs a network namespace;
/// `false`: it has an address and wasm containers only. Without it (from a kubelet that does not know it) a sandbox of the
/// default handler gets a namespace where the runtime can make one.
pub const LINUX_CONTAINERS: &str = "coracle.dev/linux-containers";

/// On the config of a wasm container: the path of a mount that is there for its last words alone. A handler leaves none, and
/// goes without the mount.
pub const LAST_WORDS: &str = "coracle.dev/last-words";

/// On `Image.spec` of ImageStatus and ListImages: what the image holds, [`WASM`] or [`LINUX`].
pub const PLATFORM: &str = "coracle.dev/platform";
/// In `info` of a verbose ImageStatus while the image is being pulled: `{"received": bytes, "total": bytes}`.
pub const PULL_PROGRESS: &str = "coracle.dev/pull-progress";
/// A wasm component or module.
pub const WASM: &str = "wasm";
/// A root filesystem for a Linux container.
pub const LINUX: &str = "linux";
