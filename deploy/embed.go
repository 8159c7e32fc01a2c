// Package deploy has what runs beside the exporter. Its tests run each part with the programs that read it.
package deploy

import _ "embed"

// Runbook is runbook.md, in Markdown. The exporter serves it.
//
//go:embed runbook.md
var Runbook string
