//! dig, kdig, and the stubs of glibc and musl.

use super::*;
use crate::lab::{WEB, WEB_NAME, text};

#[test]
fn dig_and_kdig_get_what_they_ask_for() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let guest = guest(&lab, &daemon);
    let shows = |arguments: &[&str], expected: &[&str]| {
        let printed = guest.dig(arguments);
        for part in expected {
            assert!(printed.contains(part), "dig {arguments:?} shows no {part:?}:\n{printed}");
        }
    };
    shows(&[WEB_NAME], &["status: NOERROR", WEB, "flags: qr rd ra;", "udp: 1232", "(good)"]);
    shows(&[WEB_NAME, "+tcp"], &["status: NOERROR", WEB]);
    shows(&["WEB-1.vm.internal"], &["status: NOERROR", &guest.address, "flags: qr aa rd ra;"]);
    shows(&["-x", &guest.address], &["web-1.vm.internal."]);
    shows(&["gateway.vm.internal"], &[&guest.gateway]);
    shows(&["web-1.vm.internal", "AAAA"], &["status: NOERROR", "ANSWER: 0", "SOA"]);
    shows(&["nobody.vm.internal"], &["status: NXDOMAIN", "SOA"]);
    shows(&["printer.local"], &["status: NXDOMAIN"]);
    shows(&["version.bind", "CH", "TXT"], &["status: REFUSED"]);
    shows(&["example.com", "ANY", "+notcp"], &["RFC8482"]);
    shows(&["example.com", "AXFR"], &["Transfer failed"]);
    shows(&[WEB_NAME, "+edns=1", "+noednsneg"], &["status: BADVERS", "EDNS: version: 0"]);
    shows(&[WEB_NAME, "+opcode=NOTIFY"], &["status: NOTIMP"]);
    shows(&[WEB_NAME, "+nsid", "+subnet=192.0.2.0/24"], &["status: NOERROR"]);
    assert!(!guest.dig(&[WEB_NAME, "+nsid", "+subnet=192.0.2.0/24"]).contains("CLIENT-SUBNET"));

    // Two questions on one connection.
    let server = format!("@{}", guest.gateway);
    let kdig = guest.succeed("kdig", &[&server, "+tcp", "+keepopen", WEB_NAME, "gateway.vm.internal"]);
    assert!(kdig.contains(WEB) && kdig.contains(&guest.gateway), "{kdig}");
}

#[test]
fn the_stubs_of_glibc_and_musl_resolve() {
    let lab = Lab::new();
    let daemon = Daemon::start(&lab);
    let guest = guest(&lab, &daemon);
    let getent = |name: &str| text(&guest.with_resolv_conf(&lab, "getent", &["ahostsv4", name]));
    assert!(getent(WEB_NAME).starts_with(WEB), "{}", getent(WEB_NAME));
    // By the search list, and in one look-up for both families.
    assert!(getent("web-1").starts_with(&guest.address));
    let both = guest.with_resolv_conf(&lab, "getent", &["ahosts", WEB_NAME]);
    assert!(text(&both).contains(WEB));

    let source = lab.directory().join("lookup.c");
    fs::write(
        &source,
        "#include <netdb.h>\n#include <stdio.h>\n#include <arpa/inet.h>\n#include <string.h>\n\
         int main(int n, char **a) { struct addrinfo h, *r; memset(&h, 0, sizeof h); h.ai_socktype = SOCK_STREAM;\n\
         int e = getaddrinfo(a[1], 0, &h, &r); if (e) { puts(gai_strerror(e)); return 1; }\n\
         char t[64]; for (; r; r = r->ai_next) if (r->ai_family == AF_INET)\n\
         puts(inet_ntop(AF_INET, &((struct sockaddr_in *)r->ai_addr)->sin_addr, t, sizeof t)); return n - 2; }\n",
    )
    .unwrap();
    let program = lab.directory().join("lookup");
    let mut compile = Command::new("musl-gcc");
    crate::lab::succeed(compile.args(["-static", "-o"]).arg(&program).arg(&source));
    let musl = |name: &str| guest.with_resolv_conf(&lab, program.to_str().unwrap(), &[name]);
    assert_eq!(text(&musl(WEB_NAME)).trim(), WEB);
    assert_eq!(text(&musl("web-1")).trim(), guest.address);
    assert!(!musl("nobody.vm.internal").status.success());
}
