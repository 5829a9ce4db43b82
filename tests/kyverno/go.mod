// Names the Kyverno whose definition of ClusterPolicy the tests hold our policies against.
module detector.invalid/tests/kyverno

go 1.26.0

require github.com/kyverno/kyverno v1.19.1
