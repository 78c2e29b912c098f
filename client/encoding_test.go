package client

import (
	"encoding/json"
	"testing"
)

func TestTextThatIsNotUTF8IsRefused(t *testing.T) {
	for text, refused := range map[string]bool{
		"caf\xe9": true, `caf\` + "\xe9": true, "café \ufffd": false, `\ufffd`: false, `\\ufffd`: false, `\ufffd` + "\xff": true,
	} {
		encoded, err := json.Marshal(map[string]string{"description": text})
		if err != nil {
			t.Fatal(err)
		}
		if got := replacedBytes(encoded); got != refused {
			t.Errorf("%q: %v", text, got)
		}
	}
}
