//! The Kubernetes objects that say something about CIDRs.

use cluster_api::Selection;
use serde_json::{Value, json};

/// One selection of objects of one resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// The node's own Node.
    OwnNode,
    /// All Nodes: for a person who asks without saying which node is meant, never for an agent.
    Nodes,
    /// The control plane's Nodes.
    ControlPlaneNodes,
    /// The API server's and the controller manager's pods, as kubeadm and most others label them.
    ControlPlanePods,
    /// The same, as kOps and Talos label them.
    ControlPlanePodsByApp,
    /// kube-proxy's pod on the own node, where it is a static one.
    ProxyPods,
    /// kubeadm's ClusterConfiguration.
    KubeadmConfig,
    /// kube-proxy's configuration.
    ProxyConfig,
    /// Flannel's configuration in the namespace of its own.
    FlannelConfig,
    /// Flannel's configuration where older versions have it.
    FlannelConfigOld,
    /// Canal's configuration.
    CanalConfig,
    /// Canal's configuration in RKE2.
    CanalConfigRke2,
    /// OpenShift's network.
    OpenShiftNetwork,
    /// k0s' configuration, where it is kept in the API.
    K0sConfig,
    /// RKE1's state. It has the cluster's private keys too, so that nobody asks the API for it.
    Rke1State,
    /// The Service of the API server.
    ApiService,
    /// Cilium's configuration.
    CiliumConfig,
    /// Cilium's pools, for its ipam mode multi-pool.
    CiliumPools,
    /// What Cilium has given to the own node.
    OwnCiliumNode,
    /// Calico's pools.
    CalicoPools,
    /// Calico's pools where its own API has them, by its API server or as definitions.
    CalicoPoolsV3,
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
const CONTROL_PLANE_NODE: &str = "node-role.kubernetes.io/control-plane";
const CONTROL_PLANE: [&str; 2] = ["kube-apiserver", "kube-controller-manager"];

fn config_map(namespace: &str, name: &str) -> Selection {
    Selection::resource("", "v1", "ConfigMap", "configmaps").within(namespace).named(name)
}

fn pods() -> Selection {
    Selection::resource("", "v1", "Pod", "pods").within(SYSTEM)
}

fn nodes() -> Selection {
    Selection::resource("", "v1", "Node", "nodes")
}

fn service_cidrs(version: &str) -> Selection {
    Selection::resource("networking.k8s.io", version, "ServiceCIDR", "servicecidrs")
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 27] = [
        Self::OwnNode,
        Self::Nodes,
        Self::ControlPlaneNodes,
        Self::ControlPlanePods,
        Self::ControlPlanePodsByApp,
        Self::ProxyPods,
        Self::KubeadmConfig,
        Self::ProxyConfig,
        Self::FlannelConfig,
        Self::FlannelConfigOld,
        Self::CanalConfig,
        Self::CanalConfigRke2,
        Self::OpenShiftNetwork,
        Self::K0sConfig,
        Self::Rke1State,
        Self::ApiService,
        Self::CiliumConfig,
        Self::CiliumPools,
        Self::OwnCiliumNode,
        Self::CalicoPools,
        Self::CalicoPoolsV3,
        Self::CalicoBlocks,
        Self::ServiceCidrs,
        Self::ServiceCidrsBeta,
        Self::ServiceCidrsAlpha,
        Self::SpiderCoordinator,
        Self::Settings,
    ];

    /// Where these objects are. `node` is the own node's name.
    pub fn selection(self, node: Option<&str>) -> Selection {
        let own = node.unwrap_or_default();
        match self {
            Self::OwnNode => nodes().named(own),
            Self::Nodes => nodes(),
            Self::ControlPlaneNodes => nodes().labels(CONTROL_PLANE_NODE),
            Self::ControlPlanePods => pods().labels("component in (kube-apiserver,kube-controller-manager)"),
            Self::ControlPlanePodsByApp => pods().labels("k8s-app in (kube-apiserver,kube-controller-manager)"),
            Self::ProxyPods if node.is_some() => {
                pods().labels("component=kube-proxy").fields(&format!("spec.nodeName={own}"))
            }
            Self::ProxyPods => pods().labels("component=kube-proxy"),
            Self::KubeadmConfig => config_map(SYSTEM, "kubeadm-config"),
            Self::ProxyConfig => config_map(SYSTEM, "kube-proxy"),
            Self::FlannelConfig => config_map("kube-flannel", "kube-flannel-cfg"),
            Self::FlannelConfigOld => config_map(SYSTEM, "kube-flannel-cfg"),
            Self::CanalConfig => config_map(SYSTEM, "canal-config"),
            Self::CanalConfigRke2 => config_map(SYSTEM, "rke2-canal-config"),
            Self::OpenShiftNetwork => {
                Selection::resource("config.openshift.io", "v1", "Network", "networks").named("cluster")
            }
            Self::K0sConfig => Selection::resource("k0s.k0sproject.io", "v1beta1", "ClusterConfig", "clusterconfigs")
                .within(SYSTEM)
                .named("k0s"),
            Self::Rke1State => config_map(SYSTEM, "full-cluster-state"),
            Self::ApiService => {
                Selection::resource("", "v1", "Service", "services").within("default").named("kubernetes")
            }
            Self::CiliumConfig => config_map(SYSTEM, "cilium-config"),
            Self::CiliumPools => Selection::resource("cilium.io", "v2alpha1", "CiliumPodIPPool", "ciliumpodippools"),
            Self::OwnCiliumNode => Selection::resource("cilium.io", "v2", "CiliumNode", "ciliumnodes").named(own),
            Self::CalicoPools => Selection::resource("crd.projectcalico.org", "v1", "IPPool", "ippools"),
            Self::CalicoPoolsV3 => Selection::resource("projectcalico.org", "v3", "IPPool", "ippools"),
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
        let labelled = |label: &str, values: &[&str]| values.iter().any(|value| metadata["labels"][label] == *value);
        let selection = self.selection(node);
        selection.is_of(&text(&object["apiVersion"]), &text(&object["kind"]))
            && selection.namespace().is_none_or(|namespace| metadata["namespace"] == namespace)
            && selection.name().is_none_or(|name| metadata["name"] == name)
            && match self {
                Self::ControlPlanePods => labelled("component", &CONTROL_PLANE),
                Self::ControlPlanePodsByApp => labelled("k8s-app", &CONTROL_PLANE),
                Self::ProxyPods => {
                    labelled("component", &["kube-proxy"]) && node.is_none_or(|own| object["spec"]["nodeName"] == own)
                }
                _ => true,
            }
    }

    /// Leaves of an object what is of use, so that a cluster of many nodes fits in little memory.
    pub fn trim(self, object: &mut Value) {
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove("managedFields");
        }
        match self {
            Self::OwnNode | Self::Nodes | Self::ControlPlaneNodes => {
                let addresses = object["status"]["addresses"].take();
                object["status"] = json!({ "addresses": addresses });
                let annotations = object["metadata"]["annotations"].as_object_mut();
                if let Some(annotations) = annotations {
                    annotations.retain(|key, _| key.ends_with("/node-args"));
                }
                object["metadata"]["labels"].take();
            }
            Self::ControlPlanePods | Self::ControlPlanePodsByApp | Self::ProxyPods => {
                object["status"].take();
                object["metadata"]["annotations"].take();
                for container in object["spec"]["containers"].as_array_mut().into_iter().flatten() {
                    let [args, command, env] = ["args", "command", "env"].map(|key| container[key].take());
                    *container = json!({ "args": args, "command": command, "env": env });
                }
            }
            _ => {}
        }
    }
}
