package httpapi

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

// encoding/json changes text that loneSurrogate finds, and no other.
func FuzzLoneSurrogate(f *testing.F) {
	for _, seed := range []string{`"\ud800"`, `"\ud83d\ude00"`, `"\\ud800"`, `"\udc00\ud800"`, `"\u0041"`, `"\\\ud800x"`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var decoded string
		plain := utf8.ValidString(text) && !strings.Contains(text, "\ufffd") && !strings.Contains(strings.ToLower(text), `\ufffd`)
		if !plain || json.Unmarshal([]byte(text), &decoded) != nil {
			return
		}
		if changed := strings.Contains(decoded, "\ufffd"); changed != (loneSurrogate([]byte(text)) >= 0) {
			t.Errorf("%s is read as %q", text, decoded)
		}
	})
}
