package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// maxInput bounds how much of a file is read; the server's own limits are lower.
const maxInput = 16 << 20 // bytes

// readInput reads a file, or stdin if path is a hyphen.
func (s streams) readInput(path string) ([]byte, error) {
	in := s.in
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, maxInput+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxInput {
		return nil, fmt.Errorf("%s is larger than %d MiB", path, maxInput>>20)
	}
	return text, nil
}

func (s streams) readUserData(path string) (*string, error) {
	b, err := s.readInput(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the user data: %w", err)
	}
	text := string(b)
	return &text, nil
}

// readSSHKeys reads public keys from files; "default" means the user's own.
func (s streams) readSSHKeys(files []string) ([]string, error) {
	var keys []string
	for _, file := range files {
		paths := []string{file}
		if file == "default" {
			if paths = s.ownSSHKeys(); len(paths) == 0 {
				return nil, hint(fmt.Errorf("there is no ~/.ssh/id_*.pub"), "ssh-keygen -t ed25519")
			}
		}
		for _, path := range paths {
			found, err := s.publicKeys(path)
			if err != nil {
				return nil, err
			}
			keys = append(keys, found...)
		}
	}
	return keys, nil
}

// ownSSHKeys lists the files of the user's own public keys.
func (s streams) ownSSHKeys() []string {
	home := s.env("HOME")
	if home == "" {
		return nil
	}
	paths, _ := filepath.Glob(filepath.Join(home, ".ssh", "id_*.pub"))
	return paths
}

func (s streams) publicKeys(path string) ([]string, error) {
	text, err := s.readInput(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the SSH key: %w", err)
	}
	if strings.Contains(string(text), "PRIVATE KEY-----") {
		return nil, hint(fmt.Errorf("%s is a private key; it is not sent", path), "give the public one: --ssh-key %s.pub", path)
	}
	var keys []string
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			keys = append(keys, line)
		}
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%s holds no public key", path)
	}
	return keys, nil
}
