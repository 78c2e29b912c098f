package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Woken implements [wire.WokenHandler]. The clock stood while the guest slept,
// and a copy of this guest would draw the same random numbers.
func (a *Agent) Woken(now time.Time, seed []byte) error {
	err := errors.Join(setClock(now), stir("/dev/urandom", seed))
	a.log.Info("the guest was woken", "time", now.UTC().Format(time.RFC3339), "err", err)
	return err
}

func setClock(now time.Time) error {
	ts := unix.NsecToTimespec(now.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("cannot set the clock: %w", err)
	}
	return nil
}

// stir adds seed to the kernel's randomness and lets it draw from it at once.
func stir(device string, seed []byte) error {
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("cannot stir the randomness: %w", err)
	}
	defer func() { _ = f.Close() }()
	pool := entropy(seed)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&pool[0]))); errno != 0 {
		return fmt.Errorf("cannot add randomness: %w", errno)
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDRESEEDCRNG, 0); errno != 0 {
		return fmt.Errorf("cannot draw from new randomness: %w", errno)
	}
	return nil
}

// entropy is seed as struct rand_pool_info: how many bits it is worth, how
// many bytes it has, and those.
func entropy(seed []byte) []byte {
	pool := binary.NativeEndian.AppendUint32(nil, uint32(8*len(seed)))
	pool = binary.NativeEndian.AppendUint32(pool, uint32(len(seed)))
	return append(pool, seed...)
}
