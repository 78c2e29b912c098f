// Package sshtrust has the guest's sshd accept the SSH certificates of hatchd, and reads
// the guest's host keys.
//
// It adds a source of authorized keys to sshd instead of a TrustedUserCAKeys with
// principals: those of the image and of user data stay in force. A file in
// /etc/ssh/sshd_config.d, written before the init runs, names it; it is the same in each
// VM. The authority and the principal are in a file in /run, which no reboot and no copy
// of the disk keeps, and which sshd reads at each login. Start at [Install] and [Write].
package sshtrust

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hatchvm/hatch/internal/guest/wire"
)

const (
	mainConfig = "etc/ssh/sshd_config"
	configDir  = "etc/ssh/sshd_config.d"
	dropIn     = configDir + "/60-hatch.conf"
	keysFile   = "run/hatch/ssh/authorized_keys"
)

// dropInText is the file that names the authorized keys.
const dropInText = `# Written by hatch-agent at each boot: SSH certificates of hatchd for this VM are accepted.
AuthorizedKeysCommand /bin/cat /` + keysFile + `
AuthorizedKeysCommandUser root
`

// maxFile limits the files that are read, in bytes.
const maxFile = 256 << 10

// Install configures the sshd of an image, which must not have started yet. An image
// without an sshd that reads files in configDir, or that has an AuthorizedKeysCommand of
// its own, is left as it is.
func Install(root *os.Root) error {
	able, err := canInstall(root)
	if err != nil {
		return fmt.Errorf("cannot read the configuration of sshd: %w", err)
	}
	has, err := read(root, dropIn)
	switch {
	case err != nil && !absent(err):
		return err
	case !able && err == nil:
		return root.Remove(dropIn)
	case !able || err == nil && has == dropInText:
		return nil
	}
	if err := root.WriteFile(dropIn, []byte(dropInText), 0o644); err != nil {
		return fmt.Errorf("cannot configure sshd: %w", err)
	}
	return nil
}

// canInstall reports whether sshd reads files in configDir, and no other file sets what
// Install does.
func canInstall(root *os.Root) (bool, error) {
	text, err := read(root, mainConfig)
	if absent(err) {
		return false, nil
	}
	if err != nil || !includes(text) || setsCommand(text) {
		return false, err
	}
	entries, err := fs.ReadDir(root.FS(), configDir)
	if absent(err) {
		return false, nil
	}
	for _, e := range entries {
		name := path.Join(configDir, e.Name())
		if name == dropIn || !strings.HasSuffix(name, ".conf") {
			continue
		}
		text, err := read(root, name)
		if err != nil || setsCommand(text) {
			return false, err
		}
	}
	return err == nil, err
}

// words returns the words of a line of sshd's configuration, the keyword in lower case.
func words(line string) []string {
	w := strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(" \t\r\n=\"", r) })
	if len(w) > 0 {
		w[0] = strings.ToLower(w[0])
	}
	return w
}

// includes reports whether a configuration includes the files in configDir for all
// logins.
func includes(text string) bool {
	for line := range strings.Lines(text) {
		switch w := words(line); {
		case len(w) > 0 && w[0] == "match":
			return false
		case len(w) > 1 && w[0] == "include" && slices.ContainsFunc(w[1:], func(p string) bool {
			return p == "/"+configDir+"/*.conf" || p == "sshd_config.d/*.conf"
		}):
			return true
		}
	}
	return false
}

// setsCommand reports whether a configuration has an AuthorizedKeysCommand.
func setsCommand(text string) bool {
	for line := range strings.Lines(text) {
		if w := words(line); len(w) > 1 && w[0] == "authorizedkeyscommand" && w[1] != "none" {
			return true
		}
	}
	return false
}

// Write replaces what the guest at root trusts. It writes a file anew, so that a login
// never finds half of it.
func Write(root string, t wire.SSHTrust) error {
	file := filepath.Join(root, keysFile)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	text := fmt.Sprintf("cert-authority,principals=%q %s\n", t.Principal, t.Authority)
	fresh := file + ".new"
	if err := os.WriteFile(fresh, []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(fresh, file)
}

// Remove has the guest at root trust nothing.
func Remove(root string) error {
	if err := os.Remove(filepath.Join(root, keysFile)); !absent(err) {
		return err
	}
	return nil
}

// maxHostKeys limits how many host keys are reported.
const maxHostKeys = 8

// State reads the state of the SSH server of the guest at root.
func State(root string) (s wire.SSH) {
	dir, err := os.OpenRoot(root)
	if err != nil {
		return s
	}
	defer func() { _ = dir.Close() }()
	text, err := read(dir, dropIn)
	_, trustErr := dir.Stat(keysFile)
	s.Certificates = err == nil && text == dropInText && trustErr == nil
	names, _ := fs.Glob(dir.FS(), "etc/ssh/ssh_host_*_key.pub") // the pattern is well formed
	for _, name := range names[:min(len(names), maxHostKeys)] {
		text, err := read(dir, name)
		if f := strings.Fields(text); err == nil && len(f) > 1 {
			s.HostKeys = append(s.HostKeys, f[0]+" "+f[1])
		}
	}
	return s
}

// read reads a regular file of bounded size.
func read(root *os.Root, name string) (string, error) {
	st, err := root.Stat(name)
	if err != nil {
		return "", err
	}
	if !st.Mode().IsRegular() || st.Size() > maxFile { // a pipe would block
		return "", fmt.Errorf("/%s is not a regular file of at most %d bytes", name, maxFile)
	}
	f, err := root.Open(name)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxFile))
	return string(text), err
}

// absent reports whether err means that there is no such file.
func absent(err error) bool { return errors.Is(err, fs.ErrNotExist) }
