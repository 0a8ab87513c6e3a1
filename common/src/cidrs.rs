//! Which CIDRs apply to an attachment. Pure.

use ipnet::IpNet;
use serde_json::Value;

use crate::{
    document::{Cidrs, Command},
    failure::{Code, Context, Failure},
    settings::{ModeSetting, Settings},
};

/// The CIDRs of the configuration, and for those that it leaves open the cluster's. Overlay pods in one of the subnets
/// `direct`, which the interface itself is in, are reached directly, not through the node.
///
/// # Errors
/// When the configuration leaves the Services open and nothing is known of the cluster yet: code 11 for ADD and CHECK, 50
/// for STATUS.
pub fn resolve(settings: &Settings, cluster: &Value, command: Command, direct: &[IpNet]) -> Result<Cidrs, Failure> {
    if cluster.is_null() && settings.service_cidr.is_none() && settings.mode != ModeSetting::Disable {
        return Err(unknown(command, "Service CIDRs").details(
            "set serviceCIDR and overlayPodCIDR in the plugin configuration, or let the node agent run on this node",
        ));
    }
    let known: Cidrs = if cluster.is_null() {
        Cidrs::default()
    } else {
        serde_json::from_value(cluster.clone()).context(Code::Decoding, "the cluster's CIDRs are not in our form")?
    };
    let mut pod = settings.overlay_pod_cidr.clone().unwrap_or(known.pod);
    pod.retain(|cidr| !direct.iter().any(|subnet| subnet.contains(cidr)));
    Ok(merged(&Cidrs {
        service: settings.service_cidr.clone().unwrap_or(known.service),
        pod,
        hijack: settings.hijack_cidr.clone(),
    }))
}

/// That something of the cluster's is not known yet: code 50 for STATUS, else 11.
pub fn unknown(command: Command, what: &str) -> Failure {
    let code = if command == Command::Status { Code::NotAvailable } else { Code::TryAgainLater };
    Failure::new(code, format!("the cluster's {what} are not known yet"))
}

/// Without duplicates and without what another one contains; IPv4 first, in ascending order. A CIDR is named once, in
/// the first section that has it.
pub fn merged(cidrs: &Cidrs) -> Cidrs {
    let service = aggregate(&cidrs.service);
    let pod = without(aggregate(&cidrs.pod), &service);
    let hijack = without(without(aggregate(&cidrs.hijack), &service), &pod);
    Cidrs { service, pod, hijack }
}

/// What is together a whole family stays in two halves: one route to it would be the pod's own default route.
fn aggregate(nets: &Vec<IpNet>) -> Vec<IpNet> {
    let halves = |net: IpNet| match net.subnets(1) {
        Ok(halves) if net.prefix_len() == 0 && !nets.contains(&net) => halves.collect(),
        _ => vec![net],
    };
    IpNet::aggregate(nets).into_iter().flat_map(halves).collect()
}

fn without(mut nets: Vec<IpNet>, named: &[IpNet]) -> Vec<IpNet> {
    nets.retain(|net| !named.contains(net));
    nets
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_configuration_wins_over_the_cluster() {
        let settings = Settings { service_cidr: Some(nets(&["10.96.0.0/12"])), ..Settings::default() };
        let cluster = json!({"service": ["10.233.64.0/18"], "pod": ["10.233.0.0/18"]});
        let cidrs = resolve(&settings, &cluster, Command::Add, &[]).unwrap();
        assert_eq!(cidrs, Cidrs { service: nets(&["10.96.0.0/12"]), pod: nets(&["10.233.0.0/18"]), hijack: vec![] });
    }

    #[test]
    fn pods_in_the_interfaces_own_subnet_are_reached_directly_and_services_there_through_the_node() {
        let cluster =
            json!({"service": ["10.6.64.0/18"], "pod": ["10.6.0.0/16", "10.6.20.0/24", "10.6.0.0/15", "fd00:6::/64"]});
        let direct = nets(&["10.6.0.9/16", "fd00:6::9/64"]);
        let cidrs = resolve(&Settings::default(), &cluster, Command::Add, &direct).unwrap();
        // The larger one is led through the node but for the subnet in it, which the kernel prefers.
        assert_eq!(cidrs, Cidrs { service: nets(&["10.6.64.0/18"]), pod: nets(&["10.6.0.0/15"]), hijack: vec![] });
        let alone = json!({"service": [], "pod": ["10.6.0.0/16", "10.6.20.0/24"]});
        assert_eq!(resolve(&Settings::default(), &alone, Command::Add, &direct).unwrap().pod, []);
    }

    #[test]
    fn with_nothing_known_add_is_told_to_try_again_and_status_that_it_is_not_available() {
        let code = |command| resolve(&Settings::default(), &Value::Null, command, &[]).unwrap_err().code;
        assert_eq!((code(Command::Add), code(Command::Status)), (11, 50));
    }

    #[test]
    fn the_overlay_pods_cidrs_alone_are_no_way_to_services() {
        let known = |services: Option<Vec<IpNet>>| {
            let overlay_pod_cidr = Some(nets(&["10.233.0.0/18"]));
            let settings = Settings { service_cidr: services, overlay_pod_cidr, ..Settings::default() };
            resolve(&settings, &Value::Null, Command::Add, &[])
        };
        assert_eq!(known(None).unwrap_err().code, 11);
        assert!(known(Some(nets(&["10.96.0.0/12"]))).is_ok());
    }

    #[test]
    fn what_another_cidr_contains_is_dropped() {
        let cidrs = Cidrs {
            service: nets(&["10.1.0.0/16", "10.1.2.0/24", "10.1.0.0/16", "fd00::/108"]),
            pod: nets(&["10.1.0.0/16", "10.2.0.0/16"]),
            hijack: nets(&["10.2.0.0/16", "1.1.1.1/32"]),
        };
        let expected = Cidrs {
            service: nets(&["10.1.0.0/16", "fd00::/108"]),
            pod: nets(&["10.2.0.0/16"]),
            hijack: nets(&["1.1.1.1/32"]),
        };
        assert_eq!(merged(&cidrs), expected);
    }

    #[test]
    fn the_two_halves_of_a_family_do_not_become_a_default_route() {
        let halves = nets(&["0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1"]);
        let more = nets(&["10.0.0.0/8", "128.0.0.0/2", "192.0.0.0/2"]);
        let cidrs = Cidrs { hijack: [more, halves.clone()].concat(), ..Cidrs::default() };
        let expected = Cidrs { hijack: halves, ..Cidrs::default() };
        assert_eq!(merged(&cidrs), expected);
        assert_eq!(merged(&expected), expected);
    }
}
