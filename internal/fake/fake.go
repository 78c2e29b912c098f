// Package fake holds test doubles of what the VM service uses of a host:
// network, SSH ports, files, consoles and agents. They keep the contracts of
// package vm, without Linux, root or a VMM, and show what is attached or open.
// A double names the calls that [Calls] can make fail.
//
// It is for tests and cmd/hatchd-fake; hatchd never links it. fake/driver is
// the fake VMM, fake/guest the inside of a guest, fake/host makes a host for
// the daemon of all of them. Start at [Calls], [Network] and [Guests].
package fake
