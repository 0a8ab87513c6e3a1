// Garbage collection through libcni with its list, for the test lab.
module underpass.test/cni-gc

go 1.26.6

tool underpass.test/cni-gc

require github.com/containernetworking/cni v1.3.1

require (
	go.opentelemetry.io/otel v1.29.0 // indirect
	go.opentelemetry.io/otel/trace v1.29.0 // indirect
)
