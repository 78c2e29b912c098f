// Package account reads users and groups from the guest's /etc/passwd and
// /etc/group: the accounts that processes run as and files belong to.
//
// It parses the files itself instead of using NSS: an image need not have libc, and
// a directory service may not be up yet. Start at [Find].
package account

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Account holds what a process needs to run as a user.
type Account struct {
	Name   string // the UID in digits for a user without an entry
	UID    uint32
	GID    uint32
	Groups []uint32 // supplementary
	Home   string   // absolute
	Shell  string   // absolute
}

// Limits of what is read, in bytes.
const (
	maxFile = 16 << 20
	maxLine = 64 << 10
)

// Find returns the account that spec names: NAME or UID, optionally with :GROUP; ""
// means root. It reads the files in etc below the directory root. A UID without an
// entry is an account, too, in the group of the same number. A group in spec replaces
// all groups of the user.
func Find(root, spec string) (Account, error) {
	user, group, grouped := strings.Cut(spec, ":")
	if user == "" {
		if spec != "" {
			return Account{}, fmt.Errorf("%q names no user", spec)
		}
		user = "0"
	}
	a, err := findUser(root, user)
	if err != nil || !grouped {
		return a, err
	}
	a.Groups = nil
	a.GID, err = FindGroup(root, group)
	return a, err
}

// FindGroup returns the GID of a group, which is given by name or GID.
func FindGroup(root, group string) (uint32, error) {
	gid, found := uint32(0), false
	err := each(filepath.Join(root, "etc/group"), func(f []string) bool {
		if len(f) >= 3 && f[0] != "" && f[0] == group {
			gid, found = number(f[2])
		}
		return !found
	})
	if err != nil {
		return 0, err
	}
	if !found {
		gid, found = number(group)
	}
	if !found {
		return 0, fmt.Errorf("the guest has no group %q", group)
	}
	return gid, nil
}

func findUser(root, user string) (Account, error) {
	a, found, err := entry(root, func(f []string) bool { return f[0] == user })
	if uid, ok := number(user); ok && !found && err == nil {
		a, found, err = entry(root, func(f []string) bool { n, ok := number(f[2]); return ok && n == uid })
		if !found {
			a, found = Account{Name: user, UID: uid, GID: uid, Home: "/", Shell: "/bin/sh"}, true
		}
		if uid == 0 && a.Name == user { // an image without /etc/passwd
			a.Name = "root"
		}
	}
	if err != nil {
		return Account{}, err
	}
	if !found {
		return Account{}, fmt.Errorf("the guest has no user %q", user)
	}
	a.Groups, err = groupsOf(root, a.Name)
	return a, err
}

// entry returns the first account of /etc/passwd that has a name and that wanted accepts.
func entry(root string, wanted func(fields []string) bool) (a Account, found bool, err error) {
	err = each(filepath.Join(root, "etc/passwd"), func(f []string) bool {
		if len(f) < 7 || f[0] == "" || !wanted(f) {
			return true
		}
		uid, ok := number(f[2])
		gid, ok2 := number(f[3])
		if !ok || !ok2 {
			return true
		}
		found = true
		a = Account{Name: f[0], UID: uid, GID: gid, Home: absoluteOr(f[5], "/"), Shell: absoluteOr(f[6], "/bin/sh")}
		return false
	})
	return a, found, err
}

func absoluteOr(path, fallback string) string {
	if !filepath.IsAbs(path) {
		return fallback
	}
	return path
}

func groupsOf(root, name string) ([]uint32, error) {
	var groups []uint32
	err := each(filepath.Join(root, "etc/group"), func(f []string) bool {
		if len(f) >= 4 && slices.Contains(strings.Split(f[3], ","), name) {
			if gid, ok := number(f[2]); ok {
				groups = append(groups, gid)
			}
		}
		return true
	})
	return groups, err
}

// number parses a UID or GID. Linux uses the highest one for "unchanged".
func number(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n < 1<<32-1
}

// each calls do with the fields of each line until do returns false. It treats a
// missing file as an empty one.
func each(path string, do func(fields []string) bool) error {
	f, err := os.Open(path)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot read the guest's accounts: %w", err)
	}
	defer func() { _ = f.Close() }()
	lines := bufio.NewScanner(io.LimitReader(f, maxFile))
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		if !do(strings.Split(lines.Text(), ":")) {
			return nil
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("cannot read the guest's accounts: %w", err)
	}
	return nil
}
