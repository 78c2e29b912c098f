// Package e2e runs real guests through the real API: hatchd and hatch as they
// are built, the default and the minimal image, SSH through ssh_port.
//
// Each top-level test has a sandbox and a hatchd of its own, and all of them run at
// the same time: they touch no interfaces, mounts or processes of the host, and
// nothing survives them. Images are built once per machine, into .cache/e2e. The
// package is not for behaviour that a fake can show: that is tested in test/script
// and beside the code. Start at guests_test.go, which lists the tests.
package e2e
