//! What it costs a writer of routes that the agent sees who it is.
//!
//! Only the processor time of the thread that writes is taken: what the agent does with a record, it does
//! elsewhere. The ring is emptied between two measurements, so that each write is recorded.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use detector::config::WriterSource;
use detector::source::witness::Witness;
use detector::source::writer::WriterOptions;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};

use crate::netns::Namespace;
use crate::rawroute::{RouteWriter, nth};

/// Routes that are written in one measurement; the ring holds more.
const ROUTES: u32 = 10_000;

/// How often each way is measured.
const TURNS: usize = 21;

const FIRST: Ipv4Addr = Ipv4Addr::new(10, 65, 0, 0);

/// The ways, and what they are called.
const WAYS: [(&str, Option<WriterSource>); 5] = [
    ("nobody listens", None),
    ("recorded, the writer not read", Some(WriterSource::Port)),
    ("recorded, the writer read", Some(WriterSource::Records)),
    ("the same, refused writes by fexit", Some(WriterSource::Fexit)),
    ("the same, refused writes by kprobe", Some(WriterSource::Kprobe)),
];

/// Measures all ways in turns, and prints the least and the median of each.
pub fn run() -> Result<()> {
    let namespace = Namespace::new()?;
    namespace.ip("link set lo up")?;
    namespace.ip("link add veth0 type veth peer name veth1")?;
    namespace.ip("link set veth0 up")?;
    namespace.within(measure)
}

fn measure() -> Result<()> {
    let interface = nix::net::if_::if_nametoindex("veth0")?;
    let mut taken: Vec<Vec<u64>> = vec![Vec::new(); WAYS.len()];
    let mut missing = vec![None; WAYS.len()];
    for _ in 0..TURNS {
        for (at, (_, source)) in WAYS.iter().enumerate() {
            let mut witness = None;
            if let Some(source) = *source {
                let options = WriterOptions { source, ..WriterOptions::default() };
                let (mut opened, _writers) = Witness::attach(4 << 20, &options)
                    .context("nothing is measured without eBPF")?;
                let traced = matches!(source, WriterSource::Fexit | WriterSource::Kprobe);
                let sight = opened.await_sight().context("it is told whether writes are traced")?;
                let refused = sight.refusals.into_iter().find_map(Result::err);
                if let Some(why) = refused.filter(|_| traced) {
                    missing[at] = Some(why);
                    continue;
                }
                witness = Some(opened);
            }
            taken[at].push(write(interface, witness.as_mut())?);
        }
    }
    println!("{TURNS} times {ROUTES} routes by raw netlink, 256 in a send, and taken away again;");
    println!("processor time of the writer, ns a change\n");
    println!("{:<38} {:>8} {:>8} {:>14}", "", "least", "median", "over the second");
    let base = median(&mut taken[1].clone()).context("nothing was measured")?;
    for ((at, (name, _)), why) in WAYS.iter().enumerate().zip(missing) {
        let mut all = taken[at].clone();
        match (median(&mut all), why) {
            (Some(middle), _) => {
                // Figures for people.
                #[expect(clippy::cast_precision_loss, reason = "a few thousand nanoseconds")]
                let ratio = middle as f64 / base as f64;
                println!("{name:<38} {:>8} {middle:>8} {ratio:>14.3}", all[0]);
            }
            (None, why) => println!("{name:<38} not here: {}", why.unwrap_or_default()),
        }
    }
    Ok(())
}

/// Writes all routes and takes them away; gives the nanoseconds that one change took.
fn write(interface: u32, mut witness: Option<&mut Witness>) -> Result<u64> {
    let mut took = Duration::ZERO;
    for present in [true, false] {
        let mut writer = RouteWriter::new()?;
        let begun = spent()?;
        for number in 0..ROUTES {
            writer.change(present, (nth(FIRST, number), 32), 0, interface)?;
        }
        writer.flush()?;
        took += Duration::from(spent()? - begun);
        if let Some(witness) = witness.as_deref_mut() {
            let mut read = 0;
            while witness.next(|_| ()).is_some() {
                read += 1;
            }
            ensure!(read >= ROUTES, "{read} records of {ROUTES} changes: the ring was full");
        }
    }
    Ok(u64::try_from(took.as_nanos())? / u64::from(2 * ROUTES))
}

fn spent() -> Result<TimeSpec> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?)
}

fn median(all: &mut [u64]) -> Option<u64> {
    all.sort_unstable();
    all.get(all.len() / 2).copied()
}
