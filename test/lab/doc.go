// Package lab boots a whole Debian host in a VM, with systemd, cgroups, file systems
// and a KVM that work, and drives Hatch in it from outside: what users install, where
// they install it.
//
// Without hardware virtualization QEMU emulates a processor with AMD's SVM, so that
// the host has a working /dev/kvm all the same, and Firecracker runs Linux in it;
// that is slow. The power of the host can be cut. The package is for tests with the
// build tag lab and needs root; it runs inside a sandbox of test/sandbox, and sends
// nothing out of it. Start at [BuildImage] and [NewHost].
package lab
