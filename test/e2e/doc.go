// Package e2e runs real guests through the real API: hatchd and hatch as they
// are built, the default and the minimal image, SSH through ssh_port.
//
// Everything happens in namespaces of its own, so that nothing touches the
// host's interfaces, mounts or processes, and nothing survives the run. The
// images are kept in .cache/e2e, so that they are built once per machine. It
// is not for what a fake can show: that is in test/script and beside the code.
// Start at guests_test.go, which lists the tests in their order.
package e2e
