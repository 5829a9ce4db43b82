//! What it costs a writer of routes that the agent sees who it is.
//!
//! Only the processor time of the writer is taken: what the agent does with a record, it does elsewhere.
//! The ring is emptied between two measurements, so that each write is recorded.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use detector::config::WriterSource;
use detector::source::witness::Witness;
use detector::source::writer::WriterOptions;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike as _};
use nix::time::{ClockId, clock_gettime};

use super::middle;
use crate::netns::Namespace;
use crate::rawroute::{RouteWriter, nth};

/// Routes that are written in one measurement; the ring holds more. Few, so that what else a machine does
/// meets all ways alike.
const ROUTES: u32 = 2_000;

/// How often each way is measured.
const TURNS: usize = 401;

const FIRST: Ipv4Addr = Ipv4Addr::new(10, 65, 0, 0);

/// The ways to listen: what they are called, by what the writer is known, and how long what was read of it
/// serves its next routes, where that is not as usual.
const WAYS: [(&str, Option<WriterSource>, Option<Duration>); 6] = [
    ("nobody listens", None, None),
    ("recorded, the writer not read", Some(WriterSource::Port), None),
    ("recorded, the writer read", Some(WriterSource::Records), None),
    ("the same, for each route anew", Some(WriterSource::Records), Some(Duration::ZERO)),
    ("read, refused writes by fexit", Some(WriterSource::Fexit), None),
    ("read, refused writes by kprobe", Some(WriterSource::Kprobe), None),
];

/// The way that the others are compared with.
const BASE: usize = 1;

/// Who writes.
#[derive(Clone, Copy)]
enum Writer {
    /// `ip`, by one process.
    Ip,
    /// As little as any program can do that wants to know what came of each route.
    OneByOne,
    /// As fast as the kernel takes it.
    Unanswered,
}

const WRITERS: [(Writer, &str); 3] = [
    (Writer::Ip, "`ip -batch`"),
    (Writer::OneByOne, "raw netlink, one by one, each answered, as routing daemons write"),
    (Writer::Unanswered, "raw netlink, 256 in a send, none answered"),
];

/// Measures all ways in turns, with each writer, and prints what came of it.
pub fn run() -> Result<()> {
    let namespace = Namespace::new()?;
    namespace.ip("link add veth0 type veth peer name veth1")?;
    namespace.ip("link set veth0 up")?;
    println!("{TURNS} times {ROUTES} routes, and taken away again; processor time of the writer\n");
    WRITERS.iter().try_for_each(|(writer, name)| measure(*writer, name, &namespace))
}

fn measure(writer: Writer, name: &str, namespace: &Namespace) -> Result<()> {
    let mut turns: Vec<[Option<f64>; WAYS.len()]> = Vec::new();
    let mut missing = [const { None::<String> }; WAYS.len()];
    for turn in 0..TURNS {
        let mut taken = [None; WAYS.len()];
        for step in 0..WAYS.len() {
            // Whichever is first has no advantage in the long run.
            let at = (turn + step) % WAYS.len();
            if missing[at].is_some() {
                continue;
            }
            let mut witness = None;
            let (_, source, fresh) = WAYS[at];
            if let Some(source) = source {
                match listen(source, fresh, namespace)? {
                    Ok(opened) => witness = Some(opened),
                    Err(why) => {
                        missing[at] = Some(why);
                        continue;
                    }
                }
            }
            taken[at] = Some(write(writer, namespace, witness.as_mut())?);
        }
        turns.push(taken);
    }
    println!("{name}:");
    println!("{:<38} {:>12} {:>8}   95 % sure", "", "ns a change", "ratio");
    for (at, (way, ..)) in WAYS.iter().enumerate() {
        if let Some(why) = &missing[at] {
            println!("{way:<38} not here: {why}");
            continue;
        }
        let [_, took, _] = middle(turns.iter().filter_map(|turn| turn[at]));
        let ratios = turns.iter().filter_map(|turn| Some(turn[at]? / turn[BASE]?));
        let [least, ratio, most] = middle(ratios);
        println!("{way:<38} {took:>12.0} {ratio:>8.3}   {least:.3} to {most:.3}");
    }
    println!();
    Ok(())
}

/// Listens in the namespace; or why this kernel does not allow it that way.
fn listen(
    source: WriterSource,
    fresh: Option<Duration>,
    namespace: &Namespace,
) -> Result<Result<Witness, String>> {
    let usual = WriterOptions::default();
    let fresh = fresh.unwrap_or(usual.fresh);
    let options = WriterOptions { source, fresh, ..usual };
    let (mut witness, _writers) = namespace
        .within(|| Witness::attach(4 << 20, &options))
        .context("nothing is measured without eBPF")?;
    let sight = witness.await_sight().context("it is told whether writes are traced")?;
    let unread = sight.writers.err().filter(|_| source != WriterSource::Port);
    let refused = sight.refusals.into_iter().find_map(Result::err);
    let traced = matches!(source, WriterSource::Fexit | WriterSource::Kprobe);
    Ok(unread.or(refused.filter(|_| traced)).map_or(Ok(witness), Err))
}

/// Writes all routes and takes them away; gives the nanoseconds that one change took.
fn write(writer: Writer, namespace: &Namespace, mut witness: Option<&mut Witness>) -> Result<f64> {
    let mut took = Duration::ZERO;
    for present in [true, false] {
        took += match writer {
            Writer::Ip => by_ip(present, namespace)?,
            Writer::OneByOne => {
                namespace.within(|| by_hand(present, RouteWriter::one_by_one()?))?
            }
            Writer::Unanswered => namespace.within(|| by_hand(present, RouteWriter::new()?))?,
        };
        if let Some(witness) = witness.as_deref_mut() {
            let mut read = 0;
            while witness.next(|_| ()).is_some() {
                read += 1;
            }
            ensure!(read >= ROUTES, "{read} records of {ROUTES} changes: the ring was full");
        }
    }
    Ok(took.as_secs_f64() * 1e9 / f64::from(2 * ROUTES))
}

/// By `ip`; gives what time it took of the processor.
fn by_ip(present: bool, namespace: &Namespace) -> Result<Duration> {
    let verb = if present { "add" } else { "del" };
    let command = |number| format!("route {verb} {} dev veth0", nth(FIRST, number));
    let commands: Vec<String> = (0..ROUTES).map(command).collect();
    let before = children()?;
    namespace.ip_batch(false, &commands)?;
    Ok(children()?.saturating_sub(before))
}

/// What processes have taken that this one started, and that have ended.
fn children() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let micros = |time: TimeVal| u64::try_from(time.num_microseconds());
    Ok(Duration::from_micros(micros(usage.user_time())? + micros(usage.system_time())?))
}

/// By this thread; gives what time it took of the processor.
fn by_hand(present: bool, mut writer: RouteWriter) -> Result<Duration> {
    let interface = nix::net::if_::if_nametoindex("veth0")?;
    let begun = spent()?;
    for number in 0..ROUTES {
        writer.change(present, (nth(FIRST, number), 32), 0, interface)?;
    }
    writer.flush()?;
    Ok(spent()?.saturating_sub(begun))
}

/// What this thread has taken of the processor's time.
fn spent() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}
