//! Log lines as the journal takes them. In: events. Out: datagrams of its native protocol
//! (systemd.io/JOURNAL_NATIVE_PROTOCOL), one for each, by way of an `Outlet`.

use std::fmt::{self, Write as _};
use std::io;
use std::os::unix::net::UnixDatagram;

use nix::sys::socket::{UnixAddr, setsockopt, sockopt};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::outlet::{Outlet, Sink};

const SOCKET: &str = "/run/systemd/journal/socket";

/// What waits in the kernel, and the longest line: as sd-journal has it.
const SEND_BUFFER: usize = 8 << 20;

/// The journal's socket, if somebody listens there.
pub(super) fn sink() -> io::Result<Sink> {
    let socket = UnixDatagram::unbound()?;
    // A datagram without a field is passed over.
    socket.send_to(&[], SOCKET)?;
    // Forced if we may; otherwise there is what the host gives.
    if setsockopt(&socket, sockopt::SndBufForce, &SEND_BUFFER).is_err() {
        let _ = setsockopt(&socket, sockopt::SndBuf, &SEND_BUFFER);
    }
    Ok(Sink::Journal(socket, UnixAddr::new(SOCKET)?))
}

pub(super) struct Journal(pub(super) Outlet);

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let mut fields = Fields(Vec::with_capacity(512));
        // syslog's severities, as sd-daemon(3) numbers them; info is a notice.
        let severity = match *metadata.level() {
            Level::ERROR => "3",
            Level::WARN => "4",
            Level::INFO => "5",
            Level::DEBUG => "6",
            Level::TRACE => "7",
        };
        fields.put("PRIORITY", severity);
        fields.put("SYSLOG_IDENTIFIER", "guestnet");
        fields.put("TARGET", metadata.target());
        if let (Some(file), Some(line)) = (metadata.file(), metadata.line()) {
            fields.put("CODE_FILE", file);
            fields.put("CODE_LINE", &line.to_string());
        }
        event.record(&mut fields);
        self.0.send(&fields.0);
    }
}

struct Fields(Vec<u8>);

impl Fields {
    /// With the value's length, so that it may have any bytes.
    fn put(&mut self, name: &str, value: &str) {
        self.0.extend(name.as_bytes());
        self.0.push(b'\n');
        self.0.extend((value.len() as u64).to_le_bytes());
        self.0.extend(value.as_bytes());
        self.0.push(b'\n');
    }

    /// Ours begin with F_, so that none of them is taken for one of the journal's.
    fn put_field(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.put("MESSAGE", value),
            name => {
                let fit = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
                let name: String =
                    "F_".chars().chain(name.trim_start_matches('_').chars().map(fit)).collect();
                self.put(&name, value);
            }
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put_field(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = String::new();
        // Only a Debug of somebody's own could fail: what it has written is there.
        let _ = write!(text, "{value:?}");
        self.put_field(field, &text);
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::prelude::*;

    use super::*;

    #[test]
    fn an_event_is_a_datagram_of_fields() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let journal = UnixDatagram::bind(&path).unwrap();
        let sink = Sink::Journal(UnixDatagram::unbound().unwrap(), UnixAddr::new(&path).unwrap());
        let layer = Journal(Outlet::open(sink).unwrap());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::warn!(vm_id = %"web-1", otel.name = 7, "two\nlines");
        });
        let mut datagram = vec![0; 4_096];
        let length = journal.recv(&mut datagram).unwrap();
        let has = |name: &str, value: &str| {
            let mut field = Fields(Vec::new());
            field.put(name, value);
            datagram[..length].windows(field.0.len()).any(|at| at == field.0)
        };
        for (name, value) in [
            ("PRIORITY", "4"),
            ("MESSAGE", "two\nlines"),
            ("F_VM_ID", "web-1"),
            ("F_OTEL_NAME", "7"),
            ("SYSLOG_IDENTIFIER", "guestnet"),
            ("TARGET", module_path!()),
        ] {
            assert!(has(name, value), "{name}: {:?}", String::from_utf8_lossy(&datagram[..length]));
        }
    }
}
