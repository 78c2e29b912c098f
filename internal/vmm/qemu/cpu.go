//go:build linux && amd64

package qemu

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// hostCPU describes the processor as far as a guest comes to rely on it. Under
// KVM that is all its features; under TCG the model, which stands for the pace
// of its counter.
func hostCPU(accel acceleration) (string, error) {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return "", fmt.Errorf("cannot tell the host's processor: %w", err)
	}
	defer func() { _ = f.Close() }()
	return parseCPU(f, accel)
}

// parseCPU reads the first processor of /proc/cpuinfo.
func parseCPU(info io.Reader, accel acceleration) (string, error) {
	facts := map[string]string{}
	lines := bufio.NewScanner(info)
	for lines.Scan() && lines.Text() != "" {
		name, value, _ := strings.Cut(lines.Text(), ":")
		facts[strings.TrimSpace(name)] = strings.TrimSpace(value)
	}
	model := facts["model name"]
	if err := lines.Err(); err != nil || model == "" {
		return "", errors.Join(errors.New("cannot tell the host's processor: /proc/cpuinfo names no model"), err)
	}
	if accel.name != AccelKVM {
		return model, nil
	}
	features := sha256.Sum256([]byte(facts["stepping"] + " " + facts["flags"]))
	return fmt.Sprintf("%s, features %x", model, features[:8]), nil
}
