package boot

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/hatchvm/hatch/internal/agent/sshtrust"
)

// writeFiles writes resolv.conf if the image's has no name server, the hostname if
// the image has no cloud-init to set it, and a file for sshd. It does not follow links out of the root, and
// does not replace a link, which the image has on purpose.
func writeFiles(dir string, p params) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	var failed []error
	if p.nic != nil && len(p.nic.dns) > 0 {
		failed = append(failed, writeResolver(root, p.nic))
	}
	if p.hostname != "" && !hasCloudInit(root) {
		failed = append(failed, replaceFile(root, "etc/hostname", p.hostname+"\n"))
	}
	failed = append(failed, sshtrust.Install(root))
	return errors.Join(failed...)
}

func writeResolver(root *os.Root, n *network) error {
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

// replaceFile writes a file in /etc. It leaves what is not a regular file, and a file
// that has the same text.
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
