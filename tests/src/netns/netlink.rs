//! Interfaces and routes, made by netlink. Scenarios begin with a dozen of them, and a process for each takes
//! longer than all the rest where the machine is emulated.

use std::net::IpAddr;
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result, bail};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::net::if_::if_nametoindex;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth, LinkMessage};
use rtnetlink::packet_route::route::{RouteProtocol, RouteScope};
use rtnetlink::{LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::Namespace;

/// A link address.
pub type LinkAddress = [u8; 6];

/// Makes changes in the network namespace of the thread that opened it, each as soon as it is asked for.
pub struct Netlink {
    socket: Socket,
}

// === impl Netlink ===

impl Netlink {
    pub(super) fn open() -> Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE).context("no netlink socket")?;
        socket.bind_auto()?;
        Ok(Self { socket })
    }

    /// Makes a bridge.
    pub fn bridge(&self, name: &str) -> Result<()> {
        self.add(LinkBridge::new(name).build(), name)
    }

    /// Makes a pair of interfaces, the other of which is there. Both have this link address, if one is
    /// given, and are down.
    pub fn veth(
        &self,
        name: &str,
        (peer, there): (&str, &Namespace),
        address: Option<LinkAddress>,
    ) -> Result<()> {
        let mut other = LinkUnspec::new_with_name(peer).setns_by_fd(there.file.as_raw_fd());
        let mut own = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth).name(name);
        if let Some(address) = address {
            other = other.address(address.into());
            own = own.address(address.into());
        }
        self.add(own.set_info_data(InfoData::Veth(InfoVeth::Peer(other.build()))).build(), name)
    }

    /// Lets an interface be up.
    pub fn up(&self, name: &str) -> Result<()> {
        self.set(LinkUnspec::new_with_name(name).up(), name)
    }

    /// Lets an interface be up that asks nobody for link addresses.
    pub fn up_without_arp(&self, name: &str) -> Result<()> {
        self.set(LinkUnspec::new_with_name(name).arp(false).up(), name)
    }

    /// Makes the route to a host, as Felix does, or to all others: by an interface.
    pub fn route(&self, (to, length): (IpAddr, u8), interface: &str) -> Result<()> {
        let index = if_nametoindex(interface).with_context(|| format!("no {interface}"))?;
        let route = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(to, length)?
            .output_interface(index)
            .protocol(RouteProtocol::Boot)
            .scope(RouteScope::Link)
            .build();
        let what = || format!("no route to {to}/{length} by {interface}");
        self.ask(RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE | NLM_F_EXCL).with_context(what)
    }

    fn add(&self, link: LinkMessage, name: &str) -> Result<()> {
        self.ask(RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL)
            .with_context(|| format!("cannot make the interface {name}"))
    }

    fn set(&self, link: LinkMessageBuilder<LinkUnspec>, name: &str) -> Result<()> {
        self.ask(RouteNetlinkMessage::NewLink(link.build()), 0)
            .with_context(|| format!("cannot set the interface {name}"))
    }

    fn ask(&self, message: RouteNetlinkMessage, flags: u16) -> Result<()> {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send_to(&bytes, &netlink_sys::SocketAddr::new(0, 0), 0)?;
        let (answer, _) = self.socket.recv_from_full()?;
        match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)?.payload {
            NetlinkPayload::Error(error) if error.code.is_none() => Ok(()),
            NetlinkPayload::Error(error) => Err(error.to_io().into()),
            other => bail!("the kernel answers something else: {other:?}"),
        }
    }
}
