package vmm

import (
	"context"
	"errors"
	"syscall"

	"github.com/hatchvm/hatch/internal/errs"
)

// Halt says why the CPUs of a machine stand still.
type Halt string

// Reasons for a halt. A guest that HaltNoSpace has stopped has lost nothing: its
// write is repeated when it is resumed.
const (
	NotHalted    Halt = ""
	HaltPaused   Halt = "paused"    // by Pause, or its guest has not begun to run
	HaltNoSpace  Halt = "no_space"  // the host's disk is full, so that a write of the guest cannot be done
	HaltIOError  Halt = "io_error"  // the host's disk failed
	HaltInternal Halt = "vmm_error" // the VMM cannot continue the guest
)

// Health is what a VMM says of its guest.
type Health struct {
	Halt Halt

	// DiskErrors is how many errors of its disks the guest was told, as far as this
	// daemon has heard; a guest that stands still was not told.
	DiskErrors uint64
}

// IsSilent reports whether a request failed because the VMM has not answered, or
// has not accepted a connection: it hangs, or is slow. A refusal is an answer.
func IsSilent(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, syscall.EAGAIN) || errs.HasCode(err, "vmm_silent")
}
