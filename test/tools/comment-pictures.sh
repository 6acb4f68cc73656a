#!/usr/bin/env bash
# comment-pictures.sh OUT.png STATE...: a picture of the golden comments of those states, rendered as GitHub does, one below the other.
# For docs/ and for eyes: the goldens themselves are tested. Needs npm, node and Chromium.
set -euo pipefail
out=$(realpath -m "${1:?usage: comment-pictures.sh OUT.png STATE...}")
shift
root=$(cd "$(dirname "$0")/../.." && pwd)
browser=$(command -v chromium || command -v google-chrome)
packages=(
  "marked@15.0.12 sha512-8dD6FusOQSrpv9Z1rdNMdlSgQOIP880DHqnohobOmYLElGEqAL/JvxvuxZO16r4HtjTlfPRDC1hbvxC9dPN2nA=="
  "github-markdown-css@5.8.1 sha512-8G+PFvqigBQSWLQjyzgpa2ThD9bo7+kDsriUIidGcRhXgmcaAWUIpCZf8DavJgc+xifjbCG+GvMyWr0XMXmc7g=="
)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
for line in "${packages[@]}"; do
  read -r package want <<<"$line"
  file=$(npm pack --silent "$package")
  got=sha512-$(openssl dgst -sha512 -binary "$file" | base64 -w0)
  [ "$got" = "$want" ] || { echo "comment-pictures.sh: $package has hash $got, not the pinned one" >&2; exit 1; }
  mkdir "${package%@*}" && tar -xzf "$file" -C "${package%@*}" --strip-components 1
done
cat >render.mjs <<'JS'
import { readFileSync, writeFileSync } from "node:fs";
import { marked } from "./marked/lib/marked.esm.js";
const [root, ...states] = process.argv.slice(2);
const css = readFileSync("github-markdown-css/github-markdown-light.css", "utf8");
const comments = states.map((state) => {
  const text = readFileSync(`${root}/pkg/report/testdata/comments/${state}.md`, "utf8").replace(/https:\/\/sluice\.example\/pictures\/[^)]*/g, `file://${root}/pkg/report/testdata/pictures/${state}.svg`);
  return `<article class="markdown-body">${marked.parse(text, { gfm: true })}</article>`;
});
writeFileSync("page.html", `<meta charset="utf-8"><style>${css}
body{margin:16px;width:960px;background:#fff} article{border:1px solid #d1d9e0;border-radius:6px;padding:16px;margin-bottom:16px;font-size:14px!important}</style>${comments.join("")}`);
JS
node render.mjs "$root" "$@"
"$browser" --headless --no-sandbox --disable-gpu --hide-scrollbars --allow-file-access-from-files --window-size="1000,${HEIGHT:-1200}" --screenshot="$out" "file://$work/page.html" >/dev/null 2>&1
