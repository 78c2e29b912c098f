package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/logkey"
)

// Woken implements [wire.WokenHandler]. The clock did not advance while the guest
// slept, and without a new seed it would draw the same random numbers as its clones.
func (a *Agent) Woken(now time.Time, seed []byte) error {
	err := errors.Join(setClock(now), reseed("/dev/urandom", seed))
	a.log.Info("guest woken", "time", now.UTC().Format(time.RFC3339), logkey.Error, err)
	return err
}

func setClock(now time.Time) error {
	ts := unix.NsecToTimespec(now.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("cannot set the clock: %w", err)
	}
	return nil
}

// reseed adds seed to the kernel's entropy pool, and has its generator reseed from it.
func reseed(device string, seed []byte) error {
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("cannot reseed the random number generator: %w", err)
	}
	defer func() { _ = f.Close() }()
	pool := entropy(seed)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&pool[0]))); errno != 0 {
		return fmt.Errorf("cannot add entropy: %w", errno)
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDRESEEDCRNG, 0); errno != 0 {
		return fmt.Errorf("cannot reseed the random number generator: %w", errno)
	}
	return nil
}

// entropy returns seed as a struct rand_pool_info: its entropy in bits, its length in
// bytes, and its bytes.
func entropy(seed []byte) []byte {
	pool := binary.NativeEndian.AppendUint32(nil, uint32(8*len(seed)))
	pool = binary.NativeEndian.AppendUint32(pool, uint32(len(seed)))
	return append(pool, seed...)
}
