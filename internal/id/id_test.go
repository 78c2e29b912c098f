package id

import (
	"regexp"
	"testing"
)

func TestNewIDsHaveTheDocumentedForm(t *testing.T) {
	form := regexp.MustCompile(`^vm_[a-z0-9]{12}$`)
	seen := map[string]bool{}
	for range 1000 {
		text := New("vm_")
		if !form.MatchString(text) || seen[text] {
			t.Fatalf("id %q has another form or is not new", text)
		}
		seen[text] = true
	}
}

func TestRandomUsesTheWholeAlphabet(t *testing.T) {
	seen := map[rune]bool{}
	for _, c := range Random(Mixed, 10000) {
		seen[c] = true
	}
	if len(seen) != len(Mixed) {
		t.Errorf("%d of %d letters were used", len(seen), len(Mixed))
	}
}
