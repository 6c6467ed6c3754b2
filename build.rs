//! Generates the API's messages, service and client from `proto/`; needs `protoc` (Debian: protobuf-compiler).
fn main() {
    // guestnet.proto has the service, the others the messages of a topic each.
    let files = [
        "proto/guestnet/v1/guestnet.proto",
        "proto/guestnet/v1/guest_config.proto",
        "proto/guestnet/v1/stats.proto",
    ];
    if let Err(error) = connectrpc_build::Config::new()
        .files(&files)
        .includes(&["proto/"])
        .include_file("_connectrpc.rs")
        .compile()
    {
        panic!("{files:?}: {error} (is protoc installed? Debian: apt-get install protobuf-compiler)");
    }
}
