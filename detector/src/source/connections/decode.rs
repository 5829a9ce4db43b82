//! A connection as netlink tells of it (linux/netfilter/nfnetlink_conntrack.h). Total: any bytes give
//! an answer.

use std::net::IpAddr;

use detector_core::traffic::{Flow, IpProtocol, Translated};

use crate::source::kernel::wire::{
    AF_INET, AF_INET6, Attribute, DecodeError, Message, array, attributes,
};
use crate::source::netfilter::HEADER;

/// `NFNL_SUBSYS_CTNETLINK`.
pub(super) const SUBSYSTEM: u16 = 1;
/// `IPCTNL_MSG_CT_NEW`, which is also what a dump's answers are.
const NEW: u16 = 0;

const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const IP_V4_SRC: u16 = 1;
const IP_V4_DST: u16 = 2;
const IP_V6_SRC: u16 = 3;
const IP_V6_DST: u16 = 4;
const PROTO_NUM: u16 = 1;
const PROTO_DST_PORT: u16 = 3;

/// One direction of a connection.
#[derive(Clone, Copy, Default)]
struct Tuple {
    source: Option<IpAddr>,
    destination: Option<IpAddr>,
    protocol: Option<u8>,
    port: Option<u16>,
}

/// A connection with who was asked and who answers; `None` where the message is about something else.
/// Whether the two differ is for the caller to say.
pub fn connection(message: &Message<'_>) -> Result<Option<Translated>, DecodeError> {
    if message.kind != (SUBSYSTEM << 8) | NEW {
        return Ok(None);
    }
    let header: &[u8; HEADER] = array(message.body, "a connection's header")?;
    let family = header[0];
    if family != AF_INET && family != AF_INET6 {
        return Ok(None);
    }
    let (mut original, mut reply) = (Tuple::default(), Tuple::default());
    for attribute in attributes(&message.body[HEADER..]) {
        let attribute = attribute?;
        match attribute.kind {
            TUPLE_ORIG => original = tuple(&attribute, family)?,
            TUPLE_REPLY => reply = tuple(&attribute, family)?,
            _ => {}
        }
    }
    let missing = DecodeError::Missing("an address of a connection");
    let (Some(client), Some(address), Some(to)) =
        (original.source, original.destination, reply.source)
    else {
        return Err(missing);
    };
    let protocol = IpProtocol(original.protocol.ok_or(DecodeError::Missing("a protocol"))?);
    let flow = Flow { client, protocol, port: original.port };
    Ok(Some(Translated { flow, address, to }))
}

fn tuple(of: &Attribute<'_>, family: u8) -> Result<Tuple, DecodeError> {
    let mut tuple = Tuple::default();
    for part in attributes(of.value) {
        let part = part?;
        for field in attributes(part.value) {
            let field = field?;
            match (part.kind, field.kind) {
                (TUPLE_IP, IP_V4_SRC | IP_V6_SRC) => {
                    tuple.source = Some(field.address("a source", family)?);
                }
                (TUPLE_IP, IP_V4_DST | IP_V6_DST) => {
                    tuple.destination = Some(field.address("a destination", family)?);
                }
                (TUPLE_PROTO, PROTO_NUM) => tuple.protocol = Some(field.u8("a protocol")?),
                (TUPLE_PROTO, PROTO_DST_PORT) => {
                    let number: &[u8; 2] = array(field.value, "a port")?;
                    tuple.port = Some(u16::from_be_bytes(*number));
                }
                _ => {}
            }
        }
    }
    Ok(tuple)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use proptest::prelude::*;

    use super::*;

    fn nested(kind: u16, parts: &[Vec<u8>]) -> Vec<u8> {
        plain(kind | 0x8000, &parts.concat())
    }

    fn plain(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = u16::try_from(value.len() + 4).unwrap().to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn told(family: u8, original: &[Vec<u8>], reply: &[Vec<u8>]) -> Vec<u8> {
        let mut body = vec![family, 0, 0, 0];
        body.extend(nested(TUPLE_ORIG, original));
        body.extend(nested(TUPLE_REPLY, reply));
        let mut message = u32::try_from(body.len() + 16).unwrap().to_ne_bytes().to_vec();
        message.extend((SUBSYSTEM << 8).to_ne_bytes());
        message.extend([0; 10]);
        message.extend(body);
        message
    }

    fn translated() -> Vec<u8> {
        let ip = |source: [u8; 4], destination: [u8; 4]| {
            nested(TUPLE_IP, &[plain(IP_V4_SRC, &source), plain(IP_V4_DST, &destination)])
        };
        let ports = |from: u16, to: u16| {
            let ports = [plain(2, &from.to_be_bytes()), plain(PROTO_DST_PORT, &to.to_be_bytes())];
            nested(TUPLE_PROTO, &[vec![plain(PROTO_NUM, &[6])], ports.to_vec()].concat())
        };
        let original = [ip([10, 1, 0, 1], [10, 1, 0, 5]), ports(40_000, 80)];
        let reply = [ip([10, 1, 0, 66], [10, 1, 0, 1]), ports(80, 40_000)];
        told(AF_INET, &original, &reply)
    }

    #[test]
    fn who_was_asked_and_who_answers_is_read() {
        let bytes = translated();
        let message = Message::first(&bytes).unwrap();
        let read = connection(&message).unwrap().unwrap();
        let flow =
            Flow { client: "10.1.0.1".parse().unwrap(), protocol: IpProtocol::TCP, port: Some(80) };
        let expected = Translated {
            flow,
            address: "10.1.0.5".parse().unwrap(),
            to: "10.1.0.66".parse().unwrap(),
        };
        assert_eq!(read, expected);
    }

    #[test]
    fn what_is_cut_short_is_refused() {
        let bytes = translated();
        for length in 0..bytes.len() - 4 {
            let mut cut = bytes[..length].to_vec();
            if let Some(claimed) = cut.first_chunk_mut::<4>() {
                *claimed = u32::try_from(length).unwrap().to_ne_bytes();
            }
            let read = Message::first(&cut).and_then(|message| connection(&message));
            assert!(!matches!(read, Ok(Some(_))) || length >= 88, "at {length}: {read:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(body in prop::collection::vec(any::<u8>(), 0..256)) {
            let kind = SUBSYSTEM << 8;
            let _ = connection(&Message { kind, flags: 0, sequence: 0, port: 0, body: &body });
        }
    }
}
