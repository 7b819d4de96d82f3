//! Which program of its image a container runs, by what its `command` says.

use std::collections::BTreeMap;

use coracle_cri_api::v1;
use coracle_wasm::protocol::Kind;
use tonic::Status;

/// The command of the image that a container runs (name and layer), where its `command` names one; else the image's own
/// program, which finds `command` and `args` among its arguments.
///
/// # Errors
/// InvalidArgument when the image's own program is one that nobody starts by a command, and yet `command` names another.
pub fn program<'a>(
    config: &v1::ContainerConfig,
    image: &str,
    kind: Kind,
    commands: &'a BTreeMap<String, String>,
) -> Result<Option<(&'a str, &'a str)>, Status> {
    let Some(first) = config.command.first() else { return Ok(None) };
    if let Some((name, layer)) = commands.get_key_value(first) {
        return Ok(Some((name, layer)));
    }
    let container = config.metadata.as_ref().map_or("", |m| m.name.as_str());
    let program = match kind {
        Kind::Command => return Ok(None),
        // What other runtimes of wasm are given where one has to say something.
        _ if first == "/" || first.ends_with(".wasm") || first == container => return Ok(None),
        Kind::HttpHandler => "an HTTP handler",
        Kind::Library => "there for other containers to call",
    };
    let others = match commands.is_empty() {
        true => "no commands beside it".to_owned(),
        false => format!("these commands: {}", commands.keys().cloned().collect::<Vec<_>>().join(", ")),
    };
    Err(Status::invalid_argument(format!(
        "container {container}: command {first:?} is not in image {image}, which has {others}; its program is {program}, which \
         no command starts: leave `command` out (`args` are what the program is told)"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_one_of_the_image_or_the_programs_own_name() {
        let commands = BTreeMap::from([("migrate".to_owned(), "sha256:a".to_owned())]);
        let asked = |kind, command: &[&str]| {
            let config = v1::ContainerConfig {
                metadata: Some(v1::ContainerMetadata { name: "web".into(), attempt: 0 }),
                command: command.iter().map(|c| (*c).to_owned()).collect(),
                ..Default::default()
            };
            program(&config, "shop:v1", kind, &commands).map(|found| found.map(|f| f.1.to_owned()))
        };
        for kind in [Kind::HttpHandler, Kind::Command, Kind::Library] {
            assert_eq!(asked(kind, &["migrate", "up"]).unwrap().as_deref(), Some("sha256:a"));
            for own in [&[][..], &["/"], &["/shop.wasm", "-v"], &["web"]] {
                assert_eq!(asked(kind, own).unwrap(), None, "{own:?}");
            }
        }
        assert_eq!(asked(Kind::Command, &["python3", "train.py"]).unwrap(), None);
        let refused = asked(Kind::HttpHandler, &["sh", "-c", "true"]).unwrap_err();
        let words = "container web: command \"sh\" is not in image shop:v1, which has these commands: migrate; its program is \
                     an HTTP handler";
        assert!(refused.message().starts_with(words), "{refused:?}");
    }
}
