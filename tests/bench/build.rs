//! Compiles the .proto file with protox: no protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    tonic_prost_build::configure().compile_fds(protox::compile(["etcd.proto"], ["proto"])?)?;
    Ok(())
}
