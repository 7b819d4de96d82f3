//! Compiles the .proto files with protox: no protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = ["runtime/v1/api.proto", "coracle/network/v1/services.proto"];
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure()
        // The runtime keeps what it was asked in files, and shows it to `crictl inspect`, as JSON.
        .message_attribute(".runtime.v1", "#[derive(serde::Serialize, serde::Deserialize)]")
        .message_attribute(".runtime.v1", "#[serde(default)]")
        .compile_fds(descriptors)?;
    Ok(())
}
