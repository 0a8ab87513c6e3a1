//! The Kubernetes objects that say something about CIDRs.

use kube::api::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};

/// One selection of objects of one resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// The node's own Node.
    OwnNode,
    /// All Nodes.
    Nodes,
    /// The API server's and the controller manager's pods.
    ControlPlanePods,
    /// kubeadm's ClusterConfiguration.
    KubeadmConfig,
    /// Flannel's configuration in the namespace of its own.
    FlannelConfig,
    /// Flannel's configuration where older versions have it.
    FlannelConfigOld,
    /// Cilium's configuration.
    CiliumConfig,
    /// Cilium's pools, for its ipam mode multi-pool.
    CiliumPools,
    /// Calico's pools.
    CalicoPools,
    /// The blocks of Calico's pools that nodes have taken.
    CalicoBlocks,
    /// networking.k8s.io/v1.
    ServiceCidrs,
    /// networking.k8s.io/v1beta1.
    ServiceCidrsBeta,
    /// networking.k8s.io/v1alpha1.
    ServiceCidrsAlpha,
    /// Spiderpool's settings.
    SpiderCoordinator,
    /// Our own settings, a ConfigMap.
    Settings,
}

/// Where the objects of a [`Kind`] are.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    /// The namespace, for objects that have one.
    pub namespace: Option<&'static str>,
    /// The name of the one object that is meant.
    pub name: Option<&'static str>,
    /// A selector for those that are meant.
    pub labels: Option<&'static str>,
}

/// Where kubeadm, k3s and their like run the control plane, and where our own objects are.
pub const SYSTEM: &str = "kube-system";
/// The name of our ConfigMap and of the Lease.
pub const UNDERPASS: &str = "underpass";
const CONTROL_PLANE: [&str; 2] = ["kube-apiserver", "kube-controller-manager"];

const fn resource(group: &'static str, version: &'static str, kind: &'static str, plural: &'static str) -> Place {
    Place { group, version, kind, plural, namespace: None, name: None, labels: None }
}

const fn config_map(namespace: &'static str, name: &'static str) -> Place {
    Place { namespace: Some(namespace), name: Some(name), ..resource("", "v1", "ConfigMap", "configmaps") }
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::OwnNode,
        Self::Nodes,
        Self::ControlPlanePods,
        Self::KubeadmConfig,
        Self::FlannelConfig,
        Self::FlannelConfigOld,
        Self::CiliumConfig,
        Self::CiliumPools,
        Self::CalicoPools,
        Self::CalicoBlocks,
        Self::ServiceCidrs,
        Self::ServiceCidrsBeta,
        Self::ServiceCidrsAlpha,
        Self::SpiderCoordinator,
        Self::Settings,
    ];

    /// Where these objects are.
    pub const fn place(self) -> Place {
        match self {
            Self::OwnNode | Self::Nodes => resource("", "v1", "Node", "nodes"),
            Self::ControlPlanePods => Place {
                namespace: Some(SYSTEM),
                labels: Some("component in (kube-apiserver,kube-controller-manager)"),
                ..resource("", "v1", "Pod", "pods")
            },
            Self::KubeadmConfig => config_map(SYSTEM, "kubeadm-config"),
            Self::FlannelConfig => config_map("kube-flannel", "kube-flannel-cfg"),
            Self::FlannelConfigOld => config_map(SYSTEM, "kube-flannel-cfg"),
            Self::CiliumConfig => config_map(SYSTEM, "cilium-config"),
            Self::CiliumPools => resource("cilium.io", "v2alpha1", "CiliumPodIPPool", "ciliumpodippools"),
            Self::CalicoPools => resource("crd.projectcalico.org", "v1", "IPPool", "ippools"),
            Self::CalicoBlocks => resource("crd.projectcalico.org", "v1", "IPAMBlock", "ipamblocks"),
            Self::ServiceCidrs => resource("networking.k8s.io", "v1", "ServiceCIDR", "servicecidrs"),
            Self::ServiceCidrsBeta => resource("networking.k8s.io", "v1beta1", "ServiceCIDR", "servicecidrs"),
            Self::ServiceCidrsAlpha => resource("networking.k8s.io", "v1alpha1", "ServiceCIDR", "servicecidrs"),
            Self::SpiderCoordinator => Place {
                name: Some("default"),
                ..resource("spiderpool.spidernet.io", "v2beta1", "SpiderCoordinator", "spidercoordinators")
            },
            Self::Settings => config_map(SYSTEM, UNDERPASS),
        }
    }

    /// Whether an object, as kubectl prints it, is one of these. `node` is the own node's name.
    pub fn has(self, object: &Value, node: Option<&str>) -> bool {
        let place = self.place();
        let metadata = &object["metadata"];
        let version = if place.group.is_empty() {
            place.version.to_owned()
        } else {
            format!("{}/{}", place.group, place.version)
        };
        object["apiVersion"] == version
            && object["kind"] == place.kind
            && place.namespace.is_none_or(|namespace| metadata["namespace"] == namespace)
            && place.name.is_none_or(|name| metadata["name"] == name)
            && (self != Self::OwnNode || node.is_some_and(|node| metadata["name"] == node))
            && (self != Self::ControlPlanePods
                || CONTROL_PLANE.iter().any(|component| metadata["labels"]["component"] == *component))
    }

    /// Leaves of an object what is of use, so that a cluster of many nodes fits in little memory.
    pub fn trim(self, object: &mut Value) {
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove("managedFields");
        }
        match self {
            Self::OwnNode | Self::Nodes => {
                let addresses = object["status"]["addresses"].take();
                object["status"] = json!({ "addresses": addresses });
                let annotations = object["metadata"]["annotations"].as_object_mut();
                if let Some(annotations) = annotations {
                    annotations.retain(|key, _| key.ends_with("/node-args"));
                }
                object["metadata"]["labels"].take();
            }
            Self::ControlPlanePods => {
                object["status"].take();
                object["metadata"]["annotations"].take();
                for container in object["spec"]["containers"].as_array_mut().into_iter().flatten() {
                    *container = json!({ "args": container["args"].take(), "command": container["command"].take() });
                }
            }
            _ => {}
        }
    }
}

impl Place {
    /// For kube's dynamic client.
    pub fn resource(&self) -> ApiResource {
        let kind = GroupVersionKind::gvk(self.group, self.version, self.kind);
        ApiResource::from_gvk_with_plural(&kind, self.plural)
    }

    /// `ippools.crd.projectcalico.org`: the resource as RBAC and kubectl name it, with the namespace and the name.
    pub fn describe(&self) -> String {
        let dot = if self.group.is_empty() { "" } else { "." };
        let name = self.name.map(|name| format!(" {name}")).unwrap_or_default();
        let namespace = self.namespace.map(|namespace| format!(" in namespace {namespace}")).unwrap_or_default();
        format!("{}{dot}{}{name}{namespace}", self.plural, self.group)
    }

    /// The rule that a role lacks when this resource is forbidden.
    pub fn rule(&self, verb: &str) -> String {
        let role = if self.namespace.is_some() { "Role" } else { "ClusterRole" };
        let names = self.name.map(|name| format!(", resourceNames [{name}]")).unwrap_or_default();
        let place = self.namespace.map(|namespace| format!(" in namespace {namespace}")).unwrap_or_default();
        format!(
            "a {role}{place} with apiGroups [\"{}\"], resources [{}]{names}, verbs [{verb}]",
            self.group, self.plural
        )
    }
}
