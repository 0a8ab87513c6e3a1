// Real CustomResourceDefinitions for the test lab: the projects keep them as YAML in their Go modules. Nothing is compiled;
// the file beside this one says what is taken from where. Calico's version is that of its release 3.28.5, the newest that
// its module has for go (@latest). Its programs cannot be built from it: the module of its API is not served. Neither is
// Spiderpool's module; its definition is in tests/lab/spidercoordinators.yaml.
module underpass.test/crds

go 1.25.0

require (
	github.com/cilium/cilium v1.20.2
	github.com/projectcalico/calico v1.11.0-cni-plugin.0.20250813170300-a0db560f0520
)
