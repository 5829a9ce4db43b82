//! Connections of TCP, whose packets the client's kernel counts: how many there are depends on when each
//! side gets to answer.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect as connect_to, setsockopt,
    socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use super::wire::Packets;
use crate::netns::Namespace;
use crate::scenario::packets::{TCP_HEADER, TCP_SYN_OPTIONS, ip_header};

/// How long one step of a connection may take, in seconds.
const PATIENCE: i64 = 10;

/// Options that some packets of a connection have and others have not.
const OPTIONS: [&str; 3] = ["tcp_timestamps", "tcp_sack", "tcp_window_scaling"];

/// Makes connections one after the other, each with its payload; gives the client's packets and their
/// bytes from the IP header on.
pub(super) fn connect(
    client: &Namespace,
    server: &Namespace,
    packets: &Packets,
) -> Result<(u64, u64)> {
    client.within(|| -> Result<()> {
        for name in OPTIONS {
            fs::write(format!("/proc/sys/net/ipv4/{name}"), "0")?;
        }
        Ok(())
    })?;
    let (tell, told) = sync_channel(1);
    std::thread::scope(|scope| {
        let serve = || server.within(|| serve(packets, || tell.send(()).context("nobody waits")));
        let server = scope.spawn(serve);
        // Where the server cannot listen, its thread says why.
        let listens = told.recv().is_ok();
        let sent = if listens { client.within(|| send(packets)) } else { Ok((0, 0)) };
        server.join().map_err(|_| anyhow::anyhow!("the server panicked"))?.and(sent)
    })
}

/// Takes so many connections, reads each to its end, and closes it then.
fn serve(packets: &Packets, listening: impl FnOnce() -> Result<()>) -> Result<()> {
    let any: IpAddr = if packets.to.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let listener = TcpListener::bind((any, packets.port)).context("nobody can listen")?;
    setsockopt(&listener, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE))?;
    listening()?;
    for _ in 0..packets.connections {
        let (mut connection, _) = listener.accept().context("no connection came")?;
        connection.set_read_timeout(Some(Duration::from_secs(PATIENCE.unsigned_abs())))?;
        let mut all = Vec::new();
        connection.read_to_end(&mut all).context("a connection broke off")?;
        ensure!(all.len() == packets.payload as usize, "{} bytes arrived", all.len());
    }
    Ok(())
}

fn send(packets: &Packets) -> Result<(u64, u64)> {
    let family = if packets.to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let payload = vec![7; packets.payload as usize];
    let (mut all, mut bytes) = (0, 0);
    for _ in 0..packets.connections {
        let socket: OwnedFd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        let address = |ip, port| SockaddrStorage::from(SocketAddr::new(ip, port));
        setsockopt(&socket, sockopt::SendTimeout, &TimeVal::seconds(PATIENCE))?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE))?;
        bind(socket.as_raw_fd(), &address(packets.from, 0))?;
        connect_to(socket.as_raw_fd(), &address(packets.to, packets.port))
            .context("nobody answers")?;
        let mut connection = TcpStream::from(socket);
        // No data yet: all that was sent again were requests for the connection, each with its options.
        let requests = 1 + Counts::of(&connection)?.sent_again;
        connection.write_all(&payload)?;
        connection.shutdown(Shutdown::Write)?;
        // When the other side has closed, this one has said all that it says.
        ensure!(connection.read(&mut [0])? == 0, "an answer that nobody expects");
        let counts = Counts::of(&connection)?;
        let headers = ip_header(packets.to.is_ipv4()) + TCP_HEADER;
        all += u64::from(counts.segments);
        bytes += u64::from(counts.segments) * u64::from(headers)
            + u64::from(requests) * u64::from(TCP_SYN_OPTIONS)
            + counts.payload;
    }
    Ok((all, bytes))
}

/// What the kernel has counted of a connection.
struct Counts {
    /// Segments sent, as they are on the wire.
    segments: u32,
    /// Those of them that were sent again.
    sent_again: u32,
    /// Bytes of payload, those that were sent again among them.
    payload: u64,
}

impl Counts {
    /// `TCP_INFO`, of which libc knows only the first part: `struct tcp_info` of linux/tcp.h.
    fn of(connection: &TcpStream) -> Result<Self> {
        const TOTAL_RETRANS: usize = 100;
        const SEGMENTS_OUT: usize = 136;
        const BYTES_SENT: usize = 200;
        let mut info = [0u8; 256];
        let mut length = u32::try_from(info.len())?;
        // SAFETY: the descriptor is open, and the kernel writes no more than the length that it is given.
        let done = unsafe {
            nix::libc::getsockopt(
                connection.as_raw_fd(),
                nix::libc::IPPROTO_TCP,
                nix::libc::TCP_INFO,
                info.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        ensure!(done == 0, "no TCP_INFO: {}", std::io::Error::last_os_error());
        ensure!(length as usize >= BYTES_SENT + 8, "this kernel does not count what TCP sends");
        let count =
            |at: usize| -> Result<u32> { Ok(u32::from_ne_bytes(info[at..at + 4].try_into()?)) };
        Ok(Self {
            segments: count(SEGMENTS_OUT)?,
            sent_again: count(TOTAL_RETRANS)?,
            payload: u64::from_ne_bytes(info[BYTES_SENT..BYTES_SENT + 8].try_into()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::packets::Carries;

    /// Needs root. The truth is a counter of the kernel's own, where packets leave; no packet is so long
    /// that the kernel would make one of several.
    #[test]
    fn a_lost_request_for_a_connection_is_counted_with_its_options() {
        let (client, server) = (Namespace::new().unwrap(), Namespace::new().unwrap());
        client
            .ip(&format!("link add eth0 type veth peer name eth0 netns {}", server.path()))
            .unwrap();
        for (namespace, address) in [(&client, "192.0.2.1/24"), (&server, "192.0.2.2/24")] {
            namespace.ip(&format!("address add {address} dev eth0")).unwrap();
            namespace.ip("link set eth0 up").unwrap();
        }
        let count = "table ip truth { counter sent {}; chain out { type filter hook output priority 0; \
                     tcp dport 8080 counter name sent; }; }";
        client.run("nft", &["-f", "-"], count).unwrap();
        let lose = "table ip thief { chain in { type filter hook input priority 0; \
                    tcp flags & (syn | ack) == syn limit rate 1/day burst 1 packets drop; }; }";
        server.run("nft", &["-f", "-"], lose).unwrap();

        let packets = Packets {
            from: "192.0.2.1".parse().unwrap(),
            to: "192.0.2.2".parse().unwrap(),
            carries: Carries::Tcp,
            port: 8080,
            count: 0,
            connections: 2,
            payload: 100,
        };
        let (sent, bytes) = connect(&client, &server, &packets).unwrap();

        let truth =
            client.run("nft", &["-j", "list", "counter", "ip", "truth", "sent"], "").unwrap();
        let truth: serde_json::Value = serde_json::from_str(&truth).unwrap();
        let truth = &truth["nftables"][1]["counter"];
        assert_eq!((truth["packets"].as_u64(), truth["bytes"].as_u64()), (Some(sent), Some(bytes)));
    }
}
