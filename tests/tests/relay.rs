//! The relay counts, cuts and refuses.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use detector_tests::relay::{Counts, Relay};

/// How long anything may take that is certain to come.
const LONG: Duration = Duration::from_secs(20);

/// A relay to a server that says back what it hears, one connection after the other.
fn relay() -> Relay {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = server.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in server.incoming() {
            std::thread::spawn(move || {
                let mut stream = stream.unwrap();
                let mut copy = stream.try_clone().unwrap();
                // It ends as the client does, one way or the other.
                let _ = std::io::copy(&mut stream, &mut copy);
            });
        }
    });
    Relay::start(TcpListener::bind("127.0.0.1:0").unwrap(), addr).unwrap()
}

fn connect(relay: &Relay) -> TcpStream {
    let stream = TcpStream::connect(relay.addr()).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream
}

fn echo(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).unwrap();
    let mut heard = vec![0; text.len()];
    stream.read_exact(&mut heard).unwrap();
    assert_eq!(heard, text.as_bytes());
}

#[test]
fn bytes_go_both_ways_and_are_counted() {
    let relay = relay();
    let (mut one, mut other) = (connect(&relay), connect(&relay));
    echo(&mut one, "hello");
    echo(&mut other, "you");
    // An end is passed on, and back, after all that came before it was counted.
    for mut stream in [one, other] {
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    }
    assert_eq!(relay.counts(), Counts { connections: 2, to_server: 8, to_clients: 8 });
}

#[test]
fn cut_connections_are_reset_and_new_ones_taken() {
    let relay = relay();
    let mut before = connect(&relay);
    echo(&mut before, "x");
    relay.cut().unwrap();
    assert_eq!(before.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    echo(&mut connect(&relay), "y");
}

#[test]
fn refused_connections_come_back_on_the_same_port() {
    let relay = relay();
    let mut before = connect(&relay);
    echo(&mut before, "x");
    relay.refuse().unwrap();
    assert_eq!(before.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    let refused = TcpStream::connect(relay.addr()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    relay.serve().unwrap();
    echo(&mut connect(&relay), "y");
}

#[test]
fn a_server_that_is_gone_is_a_reset() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let relay = Relay::start(TcpListener::bind("127.0.0.1:0").unwrap(), gone).unwrap();
    let ended = connect(&relay).read(&mut [0]);
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
}
