//! What stands at a hook of an interface already.

use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType};
use detector_core::link::Link;

use crate::source::kernel::Message;
use crate::source::packets::error::HookError;
use crate::source::questions::Questions;

/// `RTM_NEWTFILTER` and `RTM_GETTFILTER`.
const NEW_FILTER: u16 = 44;
const GET_FILTER: u16 = 46;

/// The parents of filters at the two hooks of clsact: `TC_H_CLSACT` with `TC_H_MIN_INGRESS` and
/// `TC_H_MIN_EGRESS` of linux/pkt_sched.h.
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;

/// Bytes of `struct tcmsg`: the family and padding, then the interface, handle, parent and info.
const HEADER: usize = 20;

/// A filter of clsact.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Filter {
    /// Filters are tried from the lowest on.
    pub(super) preference: u16,
    pub(super) handle: u32,
}

impl Filter {
    /// Whether it may be tried before the other.
    pub(super) fn is_before(self, other: Self) -> bool {
        self != other && self.preference <= other.preference
    }
}

/// What stands at a hook.
#[derive(PartialEq, Eq, Debug, Default)]
pub(super) struct Standing {
    /// Programs by TCX, by their numbers.
    pub(super) tcx: Vec<u32>,
    pub(super) filters: Vec<Filter>,
}

impl Standing {
    /// Asks the kernel.
    pub(super) fn at(
        questions: &mut Questions,
        link: &Link,
        hook: TcAttachType,
    ) -> Result<Self, HookError> {
        // A kernel without TCX has none of it.
        let programs = SchedClassifier::query_tcx(link.name.as_str(), hook);
        let tcx = programs.map(|(_, all)| all.iter().map(ProgramInfo::id).collect());
        let parent = if matches!(hook, TcAttachType::Egress) { EGRESS } else { INGRESS };
        let mut body = vec![0; HEADER];
        body[4..8].copy_from_slice(&link.index.get().to_ne_bytes());
        body[12..16].copy_from_slice(&parent.to_ne_bytes());
        let mut filters = Vec::new();
        questions.dump(GET_FILTER, &body, &mut |message| filters.extend(filter(message)))?;
        Ok(Self { tcx: tcx.unwrap_or_default(), filters })
    }
}

/// The filter that a message tells of; of each preference there is one more, without a handle, that
/// stands for all of them.
fn filter(message: &Message<'_>) -> Option<Filter> {
    if message.kind != NEW_FILTER {
        return None;
    }
    let word = |at: usize| {
        let bytes = message.body.get(at..at + 4)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    };
    let (handle, info) = (word(8)?, word(16)?);
    // The preference stands above the protocol.
    let preference = u16::try_from(info >> 16).ok()?;
    (handle != 0).then_some(Filter { preference, handle })
}
