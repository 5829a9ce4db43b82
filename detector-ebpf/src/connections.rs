//! `connections`: a filter on a netlink socket that is told of each new connection.
//!
//! A busy node makes a hundred thousand connections a second. It lets through those whose destination
//! was translated and matters: who answers is not who was asked, and who was asked is in a range of
//! pods or is watched. What it cannot read it lets through as well.
//!
//! Built for the BPF target by detector/build.rs.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod program {
    use aya_ebpf::macros::{map, socket_filter};
    use aya_ebpf::maps::lpm_trie::Key;
    use aya_ebpf::maps::{HashMap, LpmTrie, PerCpuArray};
    use aya_ebpf::programs::SkBuffContext;
    use detector_ebpf::traffic::{Address, mapped};

    /// The prefixes in which pods' addresses lie.
    #[map]
    static RANGES: LpmTrie<Address, u32> = LpmTrie::with_max_entries(65_536, 0);

    /// Addresses that somebody may be taking.
    #[map]
    static TAKEN: HashMap<Address, u32> = HashMap::with_max_entries(4_096, 0);

    /// Connections that were seen, on each CPU.
    #[map]
    static SEEN: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

    /// `struct nlmsghdr` and `struct nfgenmsg`, behind which the attributes begin.
    const HEADERS: usize = 16 + 4;
    /// `struct nlattr`.
    const ATTRIBUTE: usize = 4;
    const CTA_TUPLE_ORIG: u16 = 1;
    const CTA_TUPLE_REPLY: u16 = 2;
    const CTA_TUPLE_IP: u16 = 1;
    const CTA_IP_V4_SRC: u16 = 1;
    const CTA_IP_V4_DST: u16 = 2;
    const CTA_IP_V6_SRC: u16 = 3;
    const CTA_IP_V6_DST: u16 = 4;
    /// Without the flag for nesting.
    const KIND: u16 = 0x3fff;

    #[socket_filter]
    pub(crate) fn connections(context: SkBuffContext) -> i64 {
        if let Some(seen) = SEEN.get_ptr_mut(0) {
            // SAFETY: the slot is this CPU's own; of two additions at once one may be lost, of a
            // number that only people read.
            unsafe { *seen += 1 };
        }
        match matters(&context) {
            Some(false) => 0,
            Some(true) | None => context.len().into(),
        }
    }

    /// Whether a connection matters; `None` where it cannot be read.
    #[inline(always)]
    fn matters(context: &SkBuffContext) -> Option<bool> {
        let original = HEADERS;
        let (length, kind) = attribute(context, original)?;
        if kind != CTA_TUPLE_ORIG {
            return None;
        }
        let reply = original + ((usize::from(length) + 3) & !3);
        if attribute(context, reply)?.1 != CTA_TUPLE_REPLY {
            return None;
        }
        let asked = address(context, original, true)?;
        let answers = address(context, reply, false)?;
        if asked == answers {
            return Some(false);
        }
        // SAFETY: only presence counts.
        let taken = unsafe { TAKEN.get(&asked) }.is_some();
        Some(taken || RANGES.get(Key::new(128, asked)).is_some())
    }

    /// The source or destination of a tuple, in the order in which the kernel writes them
    /// (`ctnetlink_dump_tuples` in net/netfilter/nf_conntrack_netlink.c).
    #[inline(always)]
    fn address(context: &SkBuffContext, tuple: usize, destination: bool) -> Option<Address> {
        let addresses = tuple + ATTRIBUTE;
        if attribute(context, addresses)?.1 != CTA_TUPLE_IP {
            return None;
        }
        let source = addresses + ATTRIBUTE;
        match (attribute(context, source)?.1, destination) {
            (CTA_IP_V4_SRC, false) => ipv4(context, source + ATTRIBUTE),
            (CTA_IP_V6_SRC, false) => context.load(source + ATTRIBUTE).ok(),
            (CTA_IP_V4_SRC, true) => {
                let at = source + ATTRIBUTE + 4;
                let is = attribute(context, at)?.1 == CTA_IP_V4_DST;
                if is { ipv4(context, at + ATTRIBUTE) } else { None }
            }
            (CTA_IP_V6_SRC, true) => {
                let at = source + ATTRIBUTE + 16;
                let is = attribute(context, at)?.1 == CTA_IP_V6_DST;
                if is { context.load(at + ATTRIBUTE).ok() } else { None }
            }
            _ => None,
        }
    }

    #[inline(always)]
    fn ipv4(context: &SkBuffContext, offset: usize) -> Option<Address> {
        context.load::<[u8; 4]>(offset).ok().map(mapped)
    }

    /// An attribute's length and kind.
    #[inline(always)]
    fn attribute(context: &SkBuffContext, offset: usize) -> Option<(u16, u16)> {
        let [length, kind] = context.load::<[u16; 2]>(offset).ok()?;
        Some((length, kind & KIND))
    }
}

detector_ebpf::object!();
