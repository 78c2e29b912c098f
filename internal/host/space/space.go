//go:build linux

// Package space says how much room the host's file systems have, turns a full one into
// an error for the caller of the API, and keeps a reserve for hatchd itself.
//
// It counts nothing that VMs use (internal/store) and knows no limits of the
// operator (internal/host/capacity). Start at [Require], [Full] and [Reserve].
package space

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/errs"
)

const hint = "delete snapshots, VMs or images, or give the data directory more room"

// Free returns the free space of the file system of dir, in bytes.
func Free(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("cannot read the free space of %s: %w", dir, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// Require checks that the file system of dir has room for so many bytes beside a
// reserve. what names their use. Errors: errs.Exhausted with code disk_full, whose
// errs.Missing is what is missing.
func Require(dir, what string, bytes, reserve int64) error {
	free, err := Free(dir)
	if err != nil || free >= bytes+reserve {
		return err
	}
	return errs.New(errs.Exhausted, "disk_full",
		"the host's disk has %d MiB left; %s needs about %d, and %d are reserved for the host", free>>20, what, bytes>>20, reserve>>20).
		WithHint(hint).WithCause(errs.Shortage{Bytes: bytes + reserve - free})
}

// Taken returns the disk space that a file takes, in bytes: its holes take none.
func Taken(st fs.FileInfo) int64 {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return sys.Blocks * 512 // on any file system
	}
	return st.Size()
}

// IsFull reports whether err says that a file system, or a quota of it, is full.
func IsFull(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}

// Full returns errs.Exhausted with code disk_full for an error that [IsFull], and
// any other error as it is.
func Full(err error) error {
	if !IsFull(err) {
		return err
	}
	return errs.New(errs.Exhausted, "disk_full", "the host's disk is full").WithHint(hint).WithCause(err)
}
