//! Values: from text to what it means, or one sentence that says why not and what to write.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use detector_core::finding::Severity;
use detector_core::link::InterfaceName;
use detector_core::route::Prefix;
use detector_core::workload::{NodeName, PodKey};
use http::Uri;
use ipnet::IpNet;
use jiff::Timestamp;

use super::outlets::NONE;
use super::{LONGEST_INTERFACE_PREFIX, RING};
use crate::text::{nearest, printable};

/// A value with the place where it stands.
pub(super) type Typed<T> = serde_saphyr::Spanned<T>;

/// `text` in quotes, fit for an error.
fn quoted(text: &str) -> String {
    format!("\"{}\"", printable(text, 64))
}

/// A node's name: an RFC 1123 subdomain.
pub(super) fn node_name(text: &str) -> Result<NodeName, String> {
    match PodKey::new("namespace", text) {
        Some(_) => Ok(NodeName(text.into())),
        None => Err(format!(
            "{} is no node's name: write it as `kubectl get nodes` shows it",
            quoted(text)
        )),
    }
}

/// A namespace: an RFC 1123 label.
pub(crate) fn namespace(text: &str) -> Result<Box<str>, String> {
    match PodKey::new(text, "pod") {
        Some(_) => Ok(text.into()),
        None => {
            Err(format!("{} is no namespace: write one name, patterns are not taken", quoted(text)))
        }
    }
}

/// A service account: an RFC 1123 subdomain.
pub(crate) fn service_account(text: &str) -> Result<Box<str>, String> {
    match PodKey::new("namespace", text) {
        Some(_) => Ok(text.into()),
        None => Err(format!(
            "{} is no service account: write one name, patterns are not taken",
            quoted(text)
        )),
    }
}

/// A path.
pub(super) fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() {
        return Err("is empty: write a path, or leave the key out".into());
    }
    Ok(text.into())
}

/// One printable line.
pub(crate) fn line(text: &str) -> Result<Box<str>, String> {
    if text.chars().any(char::is_control) || text.chars().count() > 256 {
        return Err("is not one line of at most 256 characters: shorten it".into());
    }
    Ok(text.into())
}

/// A time on the wall clock, as RFC 3339 writes it: of all that ISO 8601 lets through, the form
/// that everybody reads alike.
pub(crate) fn time(text: &str) -> Result<Timestamp, String> {
    let shape = "dddd-dd-ddTdd:dd:dd";
    let plain = text.len() > shape.len()
        && shape.bytes().zip(text.bytes()).all(|(form, byte)| match form {
            b'd' => byte.is_ascii_digit(),
            form => byte == form,
        });
    let rest = text.get(shape.len()..).unwrap_or_default();
    let zone = rest.strip_prefix('.').map_or(rest, |rest| {
        let fraction = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        if fraction.len() == rest.len() { "" } else { fraction }
    });
    let offset = zone.len() == 6
        && zone.bytes().zip("+dd:dd".bytes()).all(|(byte, form)| match form {
            b'd' => byte.is_ascii_digit(),
            b'+' => matches!(byte, b'+' | b'-'),
            form => byte == form,
        });
    let parsed = text.parse::<Timestamp>().ok().filter(|_| plain && (zone == "Z" || offset));
    parsed.ok_or_else(|| {
        format!(
            "{} is no time: write date, time and zone, such as 2030-01-31T18:00:00Z",
            quoted(text)
        )
    })
}

/// The same as [`cidr`], but an address alone means itself.
pub(crate) fn cidr_or_address(text: &str) -> Result<Prefix, String> {
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V6(v6)) if let Some(v4) = v6.to_ipv4_mapped() => {
            Err(format!("{} is an IPv4-mapped IPv6 address: write it as IPv4, {v4}", quoted(text)))
        }
        // In quotes is what was typed, not what was made of it.
        Ok(address) => {
            let host = IpNet::from(address).to_string();
            cidr(&host).map_err(|problem| problem.replacen(&host, text, 1))
        }
        Err(_) => cidr(text),
    }
}

/// One of several words.
pub(super) fn choice<T: ValueEnum>(text: &str) -> Result<T, String> {
    T::from_str(text, false).map_err(|_| {
        let known: Vec<String> = T::value_variants()
            .iter()
            .filter_map(|variant| Some(variant.to_possible_value()?.get_name().to_owned()))
            .collect();
        match nearest(text, known.iter().map(String::as_str)) {
            Some(meant) => format!("{} is not known: did you mean {meant}?", quoted(text)),
            None => format!("{} is not known: write one of {}", quoted(text), known.join(", ")),
        }
    })
}

/// The beginning of pods' interfaces' names.
pub(super) fn interface_prefix(text: &str) -> Result<Box<str>, String> {
    let fits = (1..=LONGEST_INTERFACE_PREFIX).contains(&text.len());
    if fits && InterfaceName::new(text).is_some_and(|name| name.as_str() == text) {
        return Ok(text.into());
    }
    Err(format!(
        "{} cannot begin a pod's interface: write 1 to {LONGEST_INTERFACE_PREFIX} characters such \
         as cali, Calico adds 11 digits",
        quoted(text)
    ))
}

/// The name of an interface.
pub(super) fn interface_name(text: &str) -> Result<InterfaceName, String> {
    InterfaceName::new(text).filter(|name| name.as_str() == text).ok_or_else(|| {
        format!("{} is no interface's name: write it as `ip link` shows it", quoted(text))
    })
}

/// The size of the ring: what `bpf_ringbuf` takes, a power of two of whole pages.
pub(super) fn ring_bytes(bytes: u64) -> Result<u32, String> {
    let (least, most) = RING;
    match u32::try_from(bytes) {
        Ok(bytes) if bytes.is_power_of_two() && (least..=most).contains(&bytes) => Ok(bytes),
        _ => Err(format!(
            "{bytes} is no size for the ring: write a power of two from {least} to {most}"
        )),
    }
}

/// A whole number with its unit: `ms`, `s`, `m` or `h`.
pub(crate) fn duration(text: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let millis = match unit {
        "ms" => Some(1),
        "s" => Some(1000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    let parsed = millis
        .zip(number.parse::<u64>().ok())
        .and_then(|(millis, number)| number.checked_mul(millis))
        .map(Duration::from_millis);
    match parsed {
        None => Err(format!(
            "{} is no duration: write a whole number and ms, s, m or h, such as 10s",
            quoted(text)
        )),
        Some(duration) if duration < least || duration > most => Err(format!(
            "{} is out of range: write {} to {}",
            quoted(text),
            shown_duration(least),
            shown_duration(most)
        )),
        Some(duration) => Ok(duration),
    }
}

/// A whole number within limits.
pub(super) fn number(number: u64, (least, most): (u32, u32)) -> Result<u32, String> {
    match u32::try_from(number) {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(format!("{number} is out of range: write {least} to {most}")),
    }
}

/// An address and a port to listen at, or nothing. An IPv4 address may stand in brackets as well, since a
/// manifest that puts in the node's address, as in `[$(HOST_IP)]:9465`, cannot know its family.
pub(super) fn listen(text: &str) -> Result<Option<SocketAddr>, String> {
    if text == NONE {
        return Ok(None);
    }
    let bracketed = || {
        let (address, port) = text.strip_prefix('[')?.split_once("]:")?;
        Some(SocketAddr::new(IpAddr::V4(address.parse().ok()?), port.parse().ok()?))
    };
    text.parse().ok().or_else(bracketed).map(Some).ok_or_else(|| {
        format!(
            "{} is no place to listen at: write address:port, such as 127.0.0.1:9465, or {NONE}",
            quoted(text)
        )
    })
}

/// The URL of a server. It must have no password in it: URLs are shown in logs.
pub(crate) fn url(text: &str) -> Result<Box<str>, String> {
    let uri = text.parse::<Uri>().ok();
    let good = uri.as_ref().is_some_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.authority().is_some_and(|at| !at.host().is_empty() && !at.as_str().contains('@'))
    });
    if good {
        return Ok(text.into());
    }
    // What was typed may be a secret.
    Err("is no URL that can be used: write http:// or https:// with a host and no user in it"
        .into())
}

/// The URL that others begin with.
pub(super) fn base_url(text: &str) -> Result<Box<str>, String> {
    let url = url(text)?;
    if url.contains(['?', '#']) {
        return Err("must end with a path: something is put behind it".into());
    }
    Ok(url.trim_end_matches('/').into())
}

/// The name of a sink: what fits a label of metrics.
pub(super) fn sink_name(text: &str) -> Result<Box<str>, String> {
    let fits = (1..=32).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if !fits {
        return Err(format!(
            "{} is no name for a sink: write 1 to 32 of a-z, 0-9 and -",
            quoted(text)
        ));
    }
    if ["stdout", "journald", "events", "desk"].contains(&text) {
        return Err(format!("{} is the name of another sink: choose one", quoted(text)));
    }
    Ok(text.into())
}

/// A severity.
pub(super) fn severity(text: &str) -> Result<Severity, String> {
    let all = [Severity::Low, Severity::Medium, Severity::High, Severity::Critical];
    all.into_iter().find(|severity| severity.as_str() == text).ok_or_else(|| {
        format!("{} is no severity: write one of low, medium, high, critical", quoted(text))
    })
}

/// A duration in the largest unit that has no remainder.
pub(super) fn shown_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    let units = [(3_600_000, "h"), (60_000, "m"), (1000, "s")];
    match units.into_iter().find(|(unit, _)| millis > 0 && millis.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{}{name}", millis / unit),
        None if millis == 0 => "0s".into(),
        None => format!("{millis}ms"),
    }
}

/// A range of addresses that may be allowed: written in the one way that everybody reads alike.
pub(crate) fn cidr(text: &str) -> Result<Prefix, String> {
    let wrong = |why: &str| Err(format!("{} {why}", quoted(text)));
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return wrong("has white space or a line break in it: write only the CIDR");
    }
    let Some((address, length)) = text.split_once('/') else {
        return match text.parse::<IpAddr>() {
            Ok(address) => {
                let host = IpNet::from(address.to_canonical());
                wrong(&format!("is an address, not a CIDR: write {host}"))
            }
            Err(_) => wrong("is not a CIDR: write address/length, such as 192.0.2.16/28"),
        };
    };
    let padded = |number: &str| number.len() > 1 && number.starts_with('0');
    if padded(length) || (!address.contains(':') && address.split('.').any(padded)) {
        return wrong("has leading zeros, which some read as octal: write it without");
    }
    let Ok(address) = address.parse::<IpAddr>() else {
        return wrong("is not a CIDR: write address/length, such as 192.0.2.16/28");
    };
    if let IpAddr::V6(v6) = address
        && let Some(v4) = v6.to_ipv4_mapped()
    {
        return wrong(&format!("is an IPv4-mapped IPv6 address: write it as IPv4, {v4}/..."));
    }
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let digits = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
    let length = length.parse::<u8>().ok().filter(|length| digits && *length <= longest);
    let Some(prefix) = length.and_then(|length| Prefix::new(address, length)) else {
        return wrong(&format!("has no length from 1 to {longest} behind the slash: write one"));
    };
    if prefix.length() == 0 {
        return wrong("would allow every address there is: write the range that is yours");
    }
    if prefix.address() != address {
        return wrong(&format!("has host bits set: did you mean {prefix}?"));
    }
    if never_floating(&prefix) {
        return wrong("is loopback, link-local or multicast, never a floating IP: remove it");
    }
    Ok(prefix)
}

/// Whether no address in the range can be a floating IP. 169.254.0.0/16 is among them for the sake
/// of 169.254.169.254, where clouds keep their credentials.
fn never_floating(prefix: &Prefix) -> bool {
    match prefix.address() {
        _ if prefix.is_link_scoped() => true,
        IpAddr::V4(v4) => {
            (v4.is_loopback() && prefix.length() >= 8)
                || (v4.is_link_local() && prefix.length() >= 16)
        }
        IpAddr::V6(v6) => v6.is_loopback() && prefix.is_host(),
    }
}
