//! Floods of route changes.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::Family;
use super::step::FloodStep;

/// Addresses that nobody has (RFC 2544 and RFC 3849).
const FIRST: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(198, 18, 0, 0), Ipv6Addr::new(0x2001, 0xdb8, 0xf100, 0, 0, 0, 0, 0));

/// The arguments of the `ip` commands of a flood: each route is made and unmade, and `amid` is in
/// the middle.
pub fn commands(family: Family, step: &FloodStep, amid: Option<&str>) -> Vec<String> {
    let mut commands = Vec::new();
    for at in 0..step.count {
        if at == step.count / 2 {
            commands.extend(amid.map(str::to_owned));
        }
        let prefix = match family {
            Family::Ipv4 => format!("{}/32", Ipv4Addr::from(u32::from(FIRST.0) + at)),
            Family::Ipv6 => format!("{}/128", Ipv6Addr::from(u128::from(FIRST.1) + u128::from(at))),
        };
        commands.push(format!("route add {prefix} dev {}", step.dev));
        commands.push(format!("route del {prefix} dev {}", step.dev));
    }
    commands
}
