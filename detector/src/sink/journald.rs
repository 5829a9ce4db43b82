//! The node's journal, by journald's native protocol: a message id of its own for each kind of finding,
//! and every part of it as a field, so that `journalctl` finds it by any of them.
//!
//! The protocol is a datagram of fields (systemd's documentation, JOURNAL_NATIVE_PROTOCOL); one that
//! is too large for the socket goes as a sealed file in memory, of which only the descriptor is sent.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, IoSlice, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use detector_core::finding::{Means, Severity};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};

use super::outlet::{Inlet, Message};
use super::remote::Backoff;
use super::report::{How, Report};
use super::summary::Summary;

/// How long journald may take for one message.
const PATIENCE: Duration = Duration::from_secs(1);

/// The id of a summary.
const SUMMARY: &str = "61dff67b603746988483a7e0674c3ba0";

/// The message id of each kind of finding: of its opening, its end, and all in between.
fn message_id(means: Means) -> &'static str {
    match means {
        Means::Route => "df38e1c21bcb4843a92bf867dc6044f7",
        Means::NextHop => "9f93155d020642bc8b3df162553b64af",
        Means::Rule => "baca4b3ac8d5437fb6f0c89f705e0886",
        Means::Dnat => "7b2e43dacb65432fbd23896bbd80bfe4",
        Means::Neighbour => "0c61b5c4498e49ebad309d821c8ddfa9",
        Means::Spoof => "5148913082d54ca1b7aba89c333c0b8b",
        Means::Claim => "d7e40ad1a2fc49fda2c1cbefb3f716a1",
    }
}

/// Writes until there is no more to write. A message that journald cannot take is tried again: it may
/// be restarting.
pub(super) fn run(mut inlet: Inlet, path: &Path) {
    let mut backoff = Backoff::new();
    let mut socket = None;
    while let Some(delivery) = inlet.blocking_next() {
        let entry = match &delivery.message {
            Message::Report(report) => of_report(report),
            Message::Summary(summary) => of_summary(summary),
        };
        loop {
            match send(&mut socket, path, &entry) {
                Ok(()) => break,
                Err(error) => {
                    // Where there is a new socket, the old one leads nowhere.
                    socket = None;
                    inlet.retrying(&format!(
                        "journald does not take it at {}: {error}",
                        path.display()
                    ));
                    if inlet.is_abandoned() {
                        return;
                    }
                    std::thread::sleep(backoff.pause());
                }
            }
        }
        backoff.reset();
        inlet.delivered(1, delivery.numbers);
    }
}

fn send(socket: &mut Option<UnixDatagram>, path: &Path, entry: &[u8]) -> io::Result<()> {
    let socket = if let Some(socket) = socket {
        socket
    } else {
        let new = UnixDatagram::unbound()?;
        new.set_write_timeout(Some(PATIENCE))?;
        socket.insert(new)
    };
    match socket.send_to(entry, path) {
        Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => by_file(socket, path, entry),
        sent => sent.map(drop),
    }
}

fn by_file(socket: &UnixDatagram, path: &Path, entry: &[u8]) -> io::Result<()> {
    let name = CString::new("detector-journal").unwrap_or_default();
    let file = memfd_create(name.as_c_str(), MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let mut file = File::from(file);
    file.write_all(entry)?;
    // journald takes only what nobody can change any more.
    let seals = SealFlag::F_SEAL_SHRINK
        | SealFlag::F_SEAL_GROW
        | SealFlag::F_SEAL_WRITE
        | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    let descriptors = [file.as_raw_fd()];
    let address = UnixAddr::new(path)?;
    let sent = sendmsg(
        socket.as_raw_fd(),
        &[IoSlice::new(&[])],
        &[ControlMessage::ScmRights(&descriptors)],
        MsgFlags::empty(),
        Some(&address),
    );
    sent.map(drop).map_err(|error: Errno| error.into())
}

fn of_report(report: &Report) -> Vec<u8> {
    let finding = &report.finding;
    let charge = &finding.charge;
    let attacker = &charge.attacker;
    let mut entry = begin(
        &report.summary(),
        message_id(charge.means),
        priority(charge.severity, report.how == How::Closed),
    );
    let mut field = |name: &str, value: &str| put(&mut entry, name, value);
    field("DETECTOR_KEY", &report.key());
    field("DETECTOR_STATE", report.how.as_str());
    field("DETECTOR_VERDICT", charge.certainty.as_str());
    field("DETECTOR_SEVERITY", charge.severity.as_str());
    field("DETECTOR_MEANS", charge.means.as_str());
    field("DETECTOR_EFFECT", charge.effect.as_str());
    field("DETECTOR_EXTENT", charge.extent.as_str());
    field("DETECTOR_REACH", charge.reach.scope.as_str());
    field("DETECTOR_NODE", report.node());
    field("DETECTOR_ATTACKER", &report.attacker());
    field("DETECTOR_VICTIM", &charge.victim.to_string());
    if let Some(prefix) = finding.key.subject.prefix() {
        field("DETECTOR_PREFIX", &prefix.to_string());
    }
    if let Some(pod) = &attacker.pod {
        field("DETECTOR_ATTACKER_NAMESPACE", pod.namespace());
        field("DETECTOR_ATTACKER_POD", pod.name());
    }
    if let Some(interface) = &attacker.interface {
        field("DETECTOR_ATTACKER_INTERFACE", interface.as_str());
    }
    if let Some(traffic) = &charge.traffic {
        field("DETECTOR_PACKETS", &traffic.packets.to_string());
        field("DETECTOR_BYTES", &traffic.bytes.to_string());
        field("DETECTOR_CLIENTS", &traffic.clients.to_string());
    }
    if let Some(wrote) = &charge.writer {
        field("DETECTOR_WRITER", &wrote.process.to_string());
    }
    for evidence in &charge.evidence {
        let text = format!("{}: {}", evidence.witness.as_str(), evidence.text);
        field("DETECTOR_EVIDENCE", &text);
    }
    for missing in &charge.missing {
        field("DETECTOR_MISSING", missing);
    }
    field("DETECTOR_BEGAN", &report.wall(finding.began).to_string());
    if let Some(ended) = finding.ended {
        field("DETECTOR_ENDED", &report.wall(ended).to_string());
    }
    if let Some(by) = &report.acknowledged {
        field("DETECTOR_ACKNOWLEDGED_BY", &by.by);
    }
    if report.test {
        field("DETECTOR_TEST", "1");
    }
    field("DOCUMENTATION", &report.runbook());
    entry
}

fn of_summary(summary: &Summary) -> Vec<u8> {
    let batch = &summary.batch;
    let mut entry = begin(&summary.text(), SUMMARY, priority(batch.severity, false));
    let mut field = |name: &str, value: &str| put(&mut entry, name, value);
    field("DETECTOR_NODE", summary.node());
    field("DETECTOR_SEVERITY", batch.severity.as_str());
    field("DETECTOR_HELD_BACK_OPENED", &batch.counts.opened.to_string());
    field("DETECTOR_HELD_BACK_UPDATED", &batch.counts.updated.to_string());
    field("DETECTOR_HELD_BACK_REPEATED", &batch.counts.repeated.to_string());
    field("DETECTOR_HELD_BACK_CLOSED", &batch.counts.closed.to_string());
    for held in &batch.attackers {
        field("DETECTOR_ATTACKER", &held.attacker);
    }
    field("DOCUMENTATION", &summary.runbook());
    entry
}

fn begin(message: &str, id: &str, priority: u8) -> Vec<u8> {
    let mut entry = Vec::with_capacity(2_048);
    put(&mut entry, "MESSAGE", message);
    put(&mut entry, "MESSAGE_ID", id);
    put(&mut entry, "PRIORITY", &priority.to_string());
    put(&mut entry, "SYSLOG_IDENTIFIER", "detector");
    entry
}

/// A field: `NAME=value`, or where the value has line breaks the name, its length and it.
fn put(entry: &mut Vec<u8>, name: &str, value: &str) {
    entry.extend(name.as_bytes());
    if value.contains('\n') {
        entry.push(b'\n');
        entry.extend((value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend(value.as_bytes());
    entry.push(b'\n');
}

/// The priority of syslog: critical, error, warning, notice; what is over is a notice.
fn priority(severity: Severity, over: bool) -> u8 {
    match severity {
        _ if over => 5,
        Severity::Critical => 2,
        Severity::High => 3,
        Severity::Medium => 4,
        Severity::Low => 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What journald finds in a message that is larger than a datagram: a file that nobody can change.
    #[test]
    fn what_no_datagram_holds_goes_as_a_sealed_file() {
        use std::io::{IoSliceMut, Read as _, Seek as _};
        use std::os::fd::FromRawFd as _;

        use nix::sys::socket::{ControlMessageOwned, recvmsg};

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let journald = UnixDatagram::bind(&path).unwrap();
        let mut entry = Vec::new();
        put(&mut entry, "MESSAGE", &"long ".repeat(1 << 18));
        send(&mut None, &path, &entry).unwrap();
        let mut bytes = [0; 16];
        let mut buffer = [IoSliceMut::new(&mut bytes)];
        let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
        let socket = journald.as_raw_fd();
        let message =
            recvmsg::<()>(socket, &mut buffer, Some(&mut space), MsgFlags::empty()).unwrap();
        assert_eq!(message.bytes, 0);
        let Some(ControlMessageOwned::ScmRights(files)) = message.cmsgs().unwrap().next() else {
            panic!("no descriptor was sent");
        };
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
        let mut file = unsafe { File::from_raw_fd(files[0]) };
        file.rewind().unwrap();
        let mut read = Vec::new();
        file.read_to_end(&mut read).unwrap();
        assert_eq!(read, entry);
        assert!(file.write_all(b"more").is_err(), "it can still be changed");
    }

    #[test]
    fn a_line_break_cannot_make_a_field() {
        let mut entry = Vec::new();
        put(&mut entry, "MESSAGE", "a\nPRIORITY=0");
        assert_eq!(entry, b"MESSAGE\n\x0c\0\0\0\0\0\0\0a\nPRIORITY=0\n");
    }
}
