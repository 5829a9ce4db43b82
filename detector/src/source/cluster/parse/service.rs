//! Services and their addresses.

use std::net::IpAddr;

use detector_core::claim::{Service, ServiceKey};
use k8s_openapi::api::core::v1 as api;

use super::Parsed;
use super::address::ip;
use super::reader::Reader;
use crate::source::cluster::rejection::{Reason, Rejection};

/// A Service, or why it cannot be one: without a name it cannot be told from another.
pub fn service(service: &api::Service) -> Result<Parsed<Service>, Rejection> {
    let metadata = &service.metadata;
    let mut reader = Reader::new("service", metadata);
    let (namespace, name) = (metadata.namespace.as_deref(), metadata.name.as_deref());
    let key = ServiceKey::new(namespace.unwrap_or_default(), name.unwrap_or_default())
        .ok_or_else(|| reader.rejection("metadata.name", Reason::Malformed, ""))?;
    let spec = service.spec.as_ref();
    let cluster_addresses = spec.map_or_else(Vec::new, |spec| cluster(&mut reader, spec));
    let external = spec.and_then(|spec| spec.external_ips.as_deref()).unwrap_or_default();
    let external = external.iter().map(String::as_str);
    let external_addresses = reader.take_all("spec.externalIPs", external, ip);
    let ingress = service.status.iter().filter_map(|status| status.load_balancer.as_ref());
    // An ingress has an address or a name.
    let ingress = ingress.flat_map(|balancer| balancer.ingress.iter().flatten());
    let ingress = ingress.filter_map(|ingress| ingress.ip.as_deref()).filter(|ip| !ip.is_empty());
    let balancer_addresses = reader.take_all("status.loadBalancer.ingress", ingress, ip);
    let mut ports = Vec::new();
    for port in spec.iter().flat_map(|spec| spec.ports.iter().flatten()) {
        let number = u16::try_from(port.port).ok().filter(|port| *port != 0);
        let number = number.ok_or(Reason::OutOfRange);
        if !reader.take(&mut ports, "spec.ports.port", &port.port.to_string(), number) {
            break;
        }
    }
    let value = Service { key, cluster_addresses, external_addresses, balancer_addresses, ports };
    Ok(Parsed { value, rejections: reader.rejections })
}

/// `spec.clusterIPs`, or `spec.clusterIP` where that is empty. A Service without one says `None`,
/// or nothing at all.
fn cluster(reader: &mut Reader<'_>, spec: &api::ServiceSpec) -> Vec<IpAddr> {
    let (field, texts) = match spec.cluster_ips.as_deref() {
        Some(texts @ [_, ..]) => ("spec.clusterIPs", texts),
        _ => ("spec.clusterIP", spec.cluster_ip.as_slice()),
    };
    let texts = texts.iter().map(String::as_str);
    reader.take_all(field, texts.filter(|text| !matches!(*text, "" | "None")), ip)
}
