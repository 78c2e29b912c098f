package e2bcheck

import (
	"encoding/binary"
	"strings"
	"testing"
)

func frames(messages ...string) (out []byte) {
	for _, m := range messages {
		flags := byte(0)
		if strings.HasPrefix(m, "{}") || strings.HasPrefix(m, `{"error"`) {
			flags = 2
		}
		out = append(binary.BigEndian.AppendUint32(append(out, flags), uint32(len(m))), m...)
	}
	return out
}

func TestOutputOf(t *testing.T) {
	const start, hi, done = `{"event":{"start":{"pid":6}}}`, `{"event":{"data":{"stdout":"aGkK"}}}`, `{"event":{"end":{"exited":true,"status":"exit status 0"}}}`
	whole := frames(start, hi, done, "{}")
	for name, c := range map[string]struct {
		frames []byte
		output string
		says   string // "" for success
	}{
		"success":   {whole, "hi\n", ""},
		"no end":    {frames(start, hi), "hi\n", "no end"},
		"cut":       {whole[:len(whole)-20], "hi\n", "no end"},
		"failure":   {frames(start, `{"event":{"end":{"exitCode":3,"error":"exit status 3"}}}`), "", "failed with 3"},
		"refused":   {frames(`{"error":{"code":"not_found","message":"no bash"}}`), "", "not_found: no bash"},
		"no JSON":   {frames("x"), "", "cannot read"},
		"too long":  {append([]byte{0, 0xff, 0xff, 0xff, 0xff}, 'x'), "", "no end"},
		"no frames": {nil, "", "no end"},
	} {
		output, err := outputOf(c.frames)
		if output != c.output || (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %q, %v", name, output, err)
		}
	}
}
