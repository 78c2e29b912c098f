//go:build linux && amd64

package kvm

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// CPU is what a guest relies on of a processor.
type CPU struct {
	Model    string
	Features string // a digest
}

// String names both, for a guest that runs on the processor itself.
func (c CPU) String() string { return c.Model + ", features " + c.Features }

// HostCPU describes the host's processor.
func HostCPU() (CPU, error) {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return CPU{}, fmt.Errorf("cannot read the host's processor: %w", err)
	}
	defer func() { _ = f.Close() }()
	return ParseCPU(f)
}

// ParseCPU reads the first processor of /proc/cpuinfo.
func ParseCPU(info io.Reader) (CPU, error) {
	facts := map[string]string{}
	lines := bufio.NewScanner(info)
	for lines.Scan() && lines.Text() != "" {
		name, value, _ := strings.Cut(lines.Text(), ":")
		facts[strings.TrimSpace(name)] = strings.TrimSpace(value)
	}
	model := facts["model name"]
	if err := lines.Err(); err != nil || model == "" {
		return CPU{}, errors.Join(errors.New("cannot read the host's processor: /proc/cpuinfo names no model"), err)
	}
	features := sha256.Sum256([]byte(facts["stepping"] + " " + facts["flags"]))
	return CPU{Model: model, Features: fmt.Sprintf("%x", features[:8])}, nil
}
