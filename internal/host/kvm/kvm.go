//go:build linux && amd64

// Package kvm tests whether /dev/kvm runs guests with the processor's
// virtualisation. That the device exists proves nothing: on some hosts it only
// emulates, too slowly and too incompletely for a kernel.
//
// It starts no VMs; the drivers below internal/vmm do. Start at [Probe].
package kvm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Device is the path of KVM.
const Device = "/dev/kvm"

// Result is the outcome of a probe.
type Result struct {
	Usable   bool
	Emulates bool   // guests run, but by emulation of each instruction; no kernel gets far
	Why      string // one sentence for doctor and the log; always set
}

// program is a real-mode guest: fninit; fldpi; out dx, al; hlt. Hardware runs
// the floating-point instructions and exits at the port write. KVM's emulator
// does not know fldpi and gives up there.
var program = []byte{0xdb, 0xe3, 0xd9, 0xeb, 0xba, portNumber, 0x00, 0xee, 0xf4}

const (
	portNumber  = 0x42
	programBase = 0x1000
	memorySize  = 0x2000 // two pages; the program is in the second
)

// Probe runs the guest once, which takes about 3 ms. It cannot hang: a signal ends
// a run that takes longer than runTimeout.
func Probe() Result {
	device, err := os.OpenFile(Device, os.O_RDWR, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Result{Why: Device + " does not exist: the processor has no virtualisation, or the kvm module is not loaded"}
	case err != nil:
		return Result{Why: fmt.Sprintf("%s cannot be opened: %v", Device, errors.Unwrap(err))}
	}
	defer func() { _ = device.Close() }()
	exit, err := runGuest(int(device.Fd()))
	if err != nil {
		return Result{Why: fmt.Sprintf("%s exists, but cannot run a guest: %v", Device, err)}
	}
	return judge(exit)
}

// guestExit is the part of struct kvm_run that says why the guest stopped.
type guestExit struct {
	reason   uint32
	suberror uint32 // of an internal error
	port     uint16 // of an I/O exit
}

// Exit reasons of KVM_RUN.
const (
	exitIO            = 2
	exitInternalError = 17

	suberrorEmulation = 1
)

func judge(e guestExit) Result {
	switch {
	case e.reason == exitIO && e.port == portNumber:
		return Result{Usable: true, Why: Device + " runs guests with the processor's virtualisation"}
	case e.reason == exitInternalError && e.suberror == suberrorEmulation:
		return Result{Emulates: true, Why: Device + " exists, but only emulates instructions: this host has no hardware virtualisation"}
	default:
		return Result{Why: fmt.Sprintf("%s exists, but a test guest ended with exit reason %d instead of its port write", Device, e.reason)}
	}
}

// runGuest makes a machine with one CPU, runs the program and removes the machine.
func runGuest(device int) (guestExit, error) {
	machine, err := createVM(device)
	if err != nil {
		return guestExit{}, fmt.Errorf("cannot create a machine: %w", err)
	}
	defer func() { _ = unix.Close(machine) }()
	memory, err := unix.Mmap(-1, 0, memorySize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return guestExit{}, fmt.Errorf("cannot get memory: %w", err)
	}
	defer func() { _ = unix.Munmap(memory) }()
	copy(memory[programBase:], program)
	region := memoryRegion{Size: memorySize, Address: uint64(uintptr(unsafe.Pointer(&memory[0])))}
	if _, err := ioctlPointer(machine, kvmSetUserMemoryRegion, unsafe.Pointer(&region)); err != nil {
		return guestExit{}, fmt.Errorf("cannot give it memory: %w", err)
	}
	cpu, err := ioctl(machine, kvmCreateVCPU, 0)
	if err != nil {
		return guestExit{}, fmt.Errorf("cannot create a CPU: %w", err)
	}
	defer func() { _ = unix.Close(cpu) }()
	if err := setRegisters(cpu); err != nil {
		return guestExit{}, fmt.Errorf("cannot set the CPU's registers: %w", err)
	}
	return runCPU(device, cpu)
}

// createVM makes a machine. KVM gives up when a signal arrives, as the scheduler's
// do where a creation takes long.
func createVM(device int) (machine int, err error) {
	for range createTries {
		machine, err = ioctl(device, kvmCreateVM, 0)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	return machine, err
}

// setRegisters points the CPU at the program, with flat real-mode segments.
func setRegisters(cpu int) error {
	var special specialRegisters
	if _, err := ioctlPointer(cpu, kvmGetSRegs, unsafe.Pointer(&special)); err != nil {
		return err
	}
	special.CS.Base, special.CS.Selector = 0, 0
	if _, err := ioctlPointer(cpu, kvmSetSRegs, unsafe.Pointer(&special)); err != nil {
		return err
	}
	general := generalRegisters{RIP: programBase, RFLAGS: 2} // bit 1 is always set
	_, err := ioctlPointer(cpu, kvmSetRegs, unsafe.Pointer(&general))
	return err
}

func runCPU(device, cpu int) (guestExit, error) {
	size, err := ioctl(device, kvmGetVCPUMmapSize, 0)
	if err != nil {
		return guestExit{}, err
	}
	if size < runHeader {
		return guestExit{}, fmt.Errorf("the kernel's run area has %d bytes only", size)
	}
	run, err := unix.Mmap(cpu, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return guestExit{}, fmt.Errorf("cannot map the CPU's run area: %w", err)
	}
	defer func() { _ = unix.Munmap(run) }()
	if err := enter(cpu, run); err != nil {
		return guestExit{}, fmt.Errorf("cannot run the CPU: %w", err)
	}
	return guestExit{
		reason:   binary.LittleEndian.Uint32(run[runReason:]),
		suberror: binary.LittleEndian.Uint32(run[runSuberror:]),
		port:     binary.LittleEndian.Uint16(run[runPort:]),
	}, nil
}
