//! Generates the API's messages, service and client from `proto/`, and its descriptor set for reflection; needs `protoc`
//! (Debian: protobuf-compiler).
const FILES: &[&str] = &[
    "proto/google/rpc/error_details.proto",
    "proto/guestnet/v1/dns.proto",
    "proto/guestnet/v1/events.proto",
    "proto/guestnet/v1/garbage.proto",
    "proto/guestnet/v1/guest_config.proto",
    "proto/guestnet/v1/guestnet.proto",
    "proto/guestnet/v1/lease.proto",
    "proto/guestnet/v1/network.proto",
    "proto/guestnet/v1/reload.proto",
    "proto/guestnet/v1/reservation.proto",
    "proto/guestnet/v1/policy.proto",
    "proto/guestnet/v1/stats.proto",
    "proto/guestnet/v1/status.proto",
    "proto/guestnet/v1/vm_network.proto",
];

fn main() {
    if let Err(error) = connectrpc_build::Config::new()
        .files(FILES)
        .includes(&["proto/"])
        .include_file("_connectrpc.rs")
        .emit_descriptor_set("api.fds.bin")
        .compile()
    {
        panic!("proto/: {error} (is protoc installed? Debian: apt-get install protobuf-compiler)");
    }
}
