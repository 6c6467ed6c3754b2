//! Generates the API's messages, service and client from `proto/`; needs `protoc` (Debian: protobuf-compiler).
fn main() {
    if let Err(error) = connectrpc_build::Config::new()
        .files(&["proto/guestnet/v1/guestnet.proto"])
        .includes(&["proto/"])
        .include_file("_connectrpc.rs")
        .compile()
    {
        panic!(
            "proto/guestnet/v1/guestnet.proto: {error} (is protoc installed? Debian: apt-get install protobuf-compiler)"
        );
    }
}
