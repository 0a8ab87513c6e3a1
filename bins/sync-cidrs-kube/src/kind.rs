//! The Kubernetes objects that say something about CIDRs.

use cluster_api::Selection;
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

/// Where kubeadm, k3s and their like run the control plane, and where our own objects are.
pub const SYSTEM: &str = "kube-system";
/// The name of our ConfigMap and of the Lease.
pub const UNDERPASS: &str = "underpass";
const CONTROL_PLANE: [&str; 2] = ["kube-apiserver", "kube-controller-manager"];

fn config_map(namespace: &str, name: &str) -> Selection {
    Selection::resource("", "v1", "ConfigMap", "configmaps").within(namespace).named(name)
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

    /// Where these objects are. `node` is the own node's name.
    pub fn selection(self, node: Option<&str>) -> Selection {
        let nodes = || Selection::resource("", "v1", "Node", "nodes");
        let service_cidrs = |version| Selection::resource("networking.k8s.io", version, "ServiceCIDR", "servicecidrs");
        match self {
            Self::OwnNode => nodes().named(node.unwrap_or_default()),
            Self::Nodes => nodes(),
            Self::ControlPlanePods => Selection::resource("", "v1", "Pod", "pods")
                .within(SYSTEM)
                .labels("component in (kube-apiserver,kube-controller-manager)"),
            Self::KubeadmConfig => config_map(SYSTEM, "kubeadm-config"),
            Self::FlannelConfig => config_map("kube-flannel", "kube-flannel-cfg"),
            Self::FlannelConfigOld => config_map(SYSTEM, "kube-flannel-cfg"),
            Self::CiliumConfig => config_map(SYSTEM, "cilium-config"),
            Self::CiliumPools => Selection::resource("cilium.io", "v2alpha1", "CiliumPodIPPool", "ciliumpodippools"),
            Self::CalicoPools => Selection::resource("crd.projectcalico.org", "v1", "IPPool", "ippools"),
            Self::CalicoBlocks => Selection::resource("crd.projectcalico.org", "v1", "IPAMBlock", "ipamblocks"),
            Self::ServiceCidrs => service_cidrs("v1"),
            Self::ServiceCidrsBeta => service_cidrs("v1beta1"),
            Self::ServiceCidrsAlpha => service_cidrs("v1alpha1"),
            Self::SpiderCoordinator => {
                Selection::resource("spiderpool.spidernet.io", "v2beta1", "SpiderCoordinator", "spidercoordinators")
                    .named("default")
            }
            Self::Settings => config_map(SYSTEM, UNDERPASS),
        }
    }

    /// Whether an object, as kubectl prints it, is one of these.
    pub fn has(self, object: &Value, node: Option<&str>) -> bool {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let metadata = &object["metadata"];
        let selection = self.selection(node);
        selection.is_of(&text(&object["apiVersion"]), &text(&object["kind"]))
            && selection.namespace().is_none_or(|namespace| metadata["namespace"] == namespace)
            && selection.name().is_none_or(|name| metadata["name"] == name)
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
