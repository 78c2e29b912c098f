package boot

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
)

// writeFiles gives the image what it lacks: a resolver, and its hostname when
// no cloud-init will set it. Links are never followed out of the root, and a
// link in the place of a file is the image's own arrangement: it stays.
func writeFiles(dir string, p params) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	var faults []error
	if p.nic != nil && len(p.nic.dns) > 0 {
		faults = append(faults, writeResolver(root, p.nic))
	}
	if p.hostname != "" && !hasCloudInit(root) {
		faults = append(faults, replaceFile(root, "etc/hostname", p.hostname+"\n"))
	}
	return errors.Join(faults...)
}

func writeResolver(root *os.Root, n *attachment) error {
	const path = "etc/resolv.conf"
	if has, err := root.ReadFile(path); err == nil && bytes.Contains(has, []byte("nameserver")) {
		return nil
	}
	var text strings.Builder
	for _, server := range n.dns {
		fmt.Fprintf(&text, "nameserver %s\n", server)
	}
	return replaceFile(root, path, text.String())
}

// replaceFile writes a file of etc, unless there is something that is not a
// plain file, or a file that says the same.
func replaceFile(root *os.Root, path, text string) error {
	st, err := root.Lstat(path)
	if err == nil && !st.Mode().IsRegular() {
		return nil
	}
	if has, err := root.ReadFile(path); err == nil && string(has) == text {
		return nil
	}
	if err := root.MkdirAll("etc", 0o755); err != nil {
		return err
	}
	return root.WriteFile(path, []byte(text), 0o644)
}

func hasCloudInit(root *os.Root) bool {
	for _, path := range []string{"usr/bin/cloud-init", "usr/local/bin/cloud-init"} {
		if _, err := root.Lstat(path); err == nil {
			return true
		}
	}
	return false
}
