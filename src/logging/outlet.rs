//! The way of log lines out of the process: whoever logs never waits. In: whole lines. Out: the same, written at once where they
//! are taken at once, else by a thread of its own in their order; what comes faster than it is taken is lost, counted, and said.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, UnixAddr, sendto};

/// Lines that wait for a log that does not take them.
const WAITING: usize = 4_096;

/// What a pipe that poll(2) calls writable takes without waiting (pipe(7), PIPE_BUF). A terminal is called so with less room than that.
const AT_ONCE: usize = 4_096;

/// Lines lost so far, for metrics.
static LOST: AtomicU64 = AtomicU64::new(0);

/// Lines of the log that were lost since the start.
pub fn lost() -> u64 {
    LOST.load(Relaxed)
}

/// Where lines go.
#[derive(Debug)]
pub(super) enum Sink {
    /// Standard error, and in tests another stream.
    Stream(File),
    /// Each is a datagram.
    Journal(UnixDatagram, UnixAddr),
}

impl Sink {
    /// Whether poll(2) tells when a line can be written without waiting.
    fn tells_when_ready(&self) -> bool {
        match self {
            Self::Stream(stream) => stream.metadata().is_ok_and(|found| !found.file_type().is_char_device()),
            Self::Journal(..) => true,
        }
    }

    /// Whether it has been taken, or lost, without waiting for that.
    fn try_write(&self, line: &[u8]) -> bool {
        match self {
            Self::Stream(stream) => {
                let mut ready = [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)];
                let is_ready = poll(&mut ready, PollTimeout::ZERO).is_ok_and(|ready| ready > 0);
                if line.len() > AT_ONCE || !is_ready {
                    return false;
                }
                self.write(line);
                true
            }
            Self::Journal(socket, journal) => {
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                let sent = sendto(socket.as_raw_fd(), line, journal, flags);
                if sent.is_err_and(|error| error != Errno::EAGAIN) {
                    LOST.fetch_add(1, Relaxed);
                }
                sent != Err(Errno::EAGAIN)
            }
        }
    }

    /// What fails (a full disk) is lost, and nothing else. It is counted, and not said: that line would be the next.
    fn write(&self, line: &[u8]) {
        let written = match self {
            Self::Stream(stream) => write_whole(stream, line),
            Self::Journal(socket, journal) => {
                sendto(socket.as_raw_fd(), line, journal, MsgFlags::MSG_NOSIGNAL)
                    .map(drop)
                    .map_err(io::Error::from)
            }
        };
        if written.is_err() {
            LOST.fetch_add(1, Relaxed);
        }
    }
}

/// Waits where it has to, whether or not whoever gave us the stream has made it one that does not (O_NONBLOCK).
fn write_whole(mut stream: &File, mut line: &[u8]) -> io::Result<()> {
    while !line.is_empty() {
        match stream.write(line) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => line = line.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                match poll(&mut [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[derive(Debug, Clone)]
pub(super) struct Outlet(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    sink: Sink,
    /// Lines are written by who has them, where that waits for nothing.
    at_once: bool,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    lines: VecDeque<Vec<u8>>,
    /// The thread is writing one.
    busy: bool,
    lost: u64,
}

impl Outlet {
    /// With its thread, which lasts as long as the process.
    pub(super) fn open(sink: Sink) -> io::Result<Self> {
        let at_once = sink.tells_when_ready();
        let shared = Shared { sink, at_once, queue: Mutex::default(), changed: Condvar::new() };
        let outlet = Self(Arc::new(shared));
        let writer = outlet.clone();
        std::thread::Builder::new().name("log".into()).spawn(move || writer.write_what_waits())?;
        Ok(outlet)
    }

    /// Takes a whole line, or loses it.
    pub(super) fn send(&self, line: &[u8]) {
        let mut queue = self.queue();
        // Under the lock, so that lines stay in their order.
        let is_next = queue.lines.is_empty() && !queue.busy;
        if self.0.at_once && is_next && self.0.sink.try_write(line) {
            return;
        }
        if queue.lines.len() < WAITING {
            queue.lines.push_back(line.to_vec());
            self.0.changed.notify_all();
        } else {
            queue.lost += 1;
            LOST.fetch_add(1, Relaxed);
        }
    }

    /// Waits for what waits to be written, for so long at most.
    pub(super) fn drain(&self, patience: Duration) {
        let unwritten = |queue: &mut Queue| queue.busy || !queue.lines.is_empty();
        drop(self.0.changed.wait_timeout_while(self.queue(), patience, unwritten));
    }

    fn write_what_waits(&self) {
        let mut queue = self.queue();
        loop {
            if let Some(line) = queue.lines.pop_front() {
                queue.busy = true;
                drop(queue);
                self.0.sink.write(&line);
                queue = self.queue();
                queue.busy = false;
                continue;
            }
            self.0.changed.notify_all();
            let lost = std::mem::take(&mut queue.lost);
            if lost > 0 {
                drop(queue);
                tracing::warn!(
                    lost,
                    "lines of the log were lost here: they came faster than they were taken"
                );
                queue = self.queue();
                continue;
            }
            queue = self.0.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A line at a time: tracing-subscriber writes each event whole.
impl Write for Outlet {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.send(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::FromRawFd;

    use super::*;

    #[test]
    fn who_logs_never_waits_for_who_reads_and_what_is_kept_comes_in_order() {
        let (mut reader, writer) = io::pipe().unwrap();
        let outlet = Outlet::open(Sink::Stream(std::os::fd::OwnedFd::from(writer).into())).unwrap();
        let before = lost();
        // Far more than a pipe and the queue hold.
        let sent = 2 * WAITING + 2_000;
        let line = |n: usize| format!("{n:0>99}\n");
        for n in 0..sent {
            outlet.send(line(n).as_bytes());
        }
        let lost = usize::try_from(lost() - before).unwrap();
        assert!(lost > 0 && lost < sent);
        let mut kept = vec![0; 100 * (sent - lost)];
        reader.read_exact(&mut kept).unwrap();
        let kept: Vec<usize> =
            String::from_utf8(kept).unwrap().lines().map(|line| line.parse().unwrap()).collect();
        assert!(kept.is_sorted_by(|before, after| before < after) && kept[0] == 0);
        assert!(kept.len() > WAITING, "{}", kept.len());
        outlet.drain(Duration::from_secs(60));
        outlet.send(b"after");
        let mut after = [0; 5];
        reader.read_exact(&mut after).unwrap();
        assert_eq!(&after, b"after");
    }

    #[test]
    fn a_terminal_that_nobody_reads_holds_up_nobody() {
        let (terminal, _reader) = terminal();
        let outlet = Outlet::open(Sink::Stream(terminal)).unwrap();
        // A terminal holds some twenty times less.
        for n in 0..1_000 {
            outlet.send(format!("{n:0>199}\n").as_bytes());
        }
        // And who ends waits no longer than it says.
        outlet.drain(Duration::from_millis(1));
    }

    /// One, and the side on which it is read.
    fn terminal() -> (File, File) {
        let (mut reader, mut terminal) = (-1, -1);
        let unnamed = std::ptr::null_mut();
        // SAFETY: the kernel's answers go into two integers; neither a name, settings nor a size is given.
        let made =
            unsafe { libc::openpty(&mut reader, &mut terminal, unnamed, std::ptr::null(), std::ptr::null()) };
        assert_eq!(made, 0, "{}", io::Error::last_os_error());
        // SAFETY: both are open, and nobody else's.
        unsafe { (File::from_raw_fd(terminal), File::from_raw_fd(reader)) }
    }

    #[test]
    fn a_stream_that_does_not_wait_is_waited_for_and_what_fails_is_counted() {
        let (mut reader, writer) = io::pipe().unwrap();
        nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
        let outlet = Outlet::open(Sink::Stream(std::os::fd::OwnedFd::from(writer).into())).unwrap();
        let line = [b'x'; 100];
        (0..2_000).for_each(|_| outlet.send(&line));
        let mut all = vec![0; 2_000 * line.len()];
        reader.read_exact(&mut all).unwrap();
        assert!(all.iter().all(|byte| *byte == b'x'));
        let before = lost();
        let full =
            Outlet::open(Sink::Stream(File::options().write(true).open("/dev/full").unwrap())).unwrap();
        full.send(&line);
        full.drain(Duration::from_secs(60));
        assert!(lost() > before);
    }

    #[test]
    fn a_journal_that_does_not_read_holds_up_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let journal = UnixDatagram::bind(&path).unwrap();
        let sink = Sink::Journal(UnixDatagram::unbound().unwrap(), UnixAddr::new(&path).unwrap());
        let outlet = Outlet::open(sink).unwrap();
        for n in 0..3_000 {
            outlet.send(format!("{n}").as_bytes());
        }
        let mut datagram = [0; 16];
        for n in 0..3_000 {
            let length = journal.recv(&mut datagram).unwrap();
            assert_eq!(&datagram[..length], format!("{n}").as_bytes());
        }
    }
}
