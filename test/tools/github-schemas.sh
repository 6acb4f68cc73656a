#!/usr/bin/env bash
# github-schemas.sh DIR: puts what GitHub publishes about its API and webhooks into DIR, for tests:
#   openapi.json           the OpenAPI description of the calls that Sluice makes
#   webhooks.schema.json   the JSON schema of webhooks
#   examples.json          example deliveries, by event
# They come from pinned npm packages, checked by their hashes. A second call does nothing.
# Needs npm and node. Tests find DIR by SLUICE_GITHUB_SCHEMAS.
set -euo pipefail

dir=${1:?usage: github-schemas.sh DIR}
packages=(
  "@octokit/openapi@23.0.2 sha512-pV8M7L9GY23AybNvTmo2nyjmpmnt6+2sRE/tqr0ZLQcPS4lnw7u5eZGNmwRNkBC3D7gZXbFx5AHzLUVRBXGDhg=="
  "@octokit/webhooks-examples@7.6.1 sha512-De6U3XB6O3DtCa7bKgCMzTHdeopqqZ6SNivMYJnK65ierKL1AnNIA0tkRYCRS7lwGT792d+Ps1WbfHlso6MynQ=="
  "@octokit/webhooks-schemas@7.6.1 sha512-qW0Bwtb76r4m2WzVhKDyfEeEnt1GEQoRjkCqmq2ZeB0nNVDJ+Z2LBDS9FDPyduuMXf/ZTWiCJp9PFFHgRfBe3A=="
)
# Changes when the packages or the extraction below do.
stamp=$(printf '%s\n' "extraction 4" "${packages[@]}")
if [ -f "$dir/stamp" ] && [ "$(cat "$dir/stamp")" = "$stamp" ]; then
  exit 0
fi
for tool in npm node; do
  command -v "$tool" >/dev/null || { echo "github-schemas.sh: $tool is needed" >&2; exit 1; }
done

mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
work=$(mktemp -d "$dir/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"
for line in "${packages[@]}"; do
  read -r package want <<<"$line"
  echo "fetching $package" >&2
  file=$(npm pack --silent "$package")
  got=sha512-$(node -e 'process.stdout.write(require("crypto").createHash("sha512").update(require("fs").readFileSync(process.argv[1])).digest("base64"))' "$file")
  if [ "$got" != "$want" ]; then
    echo "github-schemas.sh: $package has hash $got, not the pinned one" >&2
    exit 1
  fi
  case $package in
    @octokit/openapi@*) tar -xzf "$file" package/generated/api.github.com.json ;;
    @octokit/webhooks-examples@*) tar -xzf "$file" package/api.github.com/index.json ;;
    @octokit/webhooks-schemas@*) tar -xzf "$file" package/schema.json ;;
  esac
  rm -f "$file"
done

# The calls that Sluice makes, with all that they refer to: 13 MB become less than 1 MB.
node - <<'JS'
const fs = require("fs");
const all = JSON.parse(fs.readFileSync("package/generated/api.github.com.json"));
const wanted = [
  "/app",
  "/app/installations",
  "/app/installations/{installation_id}/access_tokens",
  "/installation/repositories",
  "/user",
  "/repos/{owner}/{repo}/collaborators/{username}/permission",
  "/repos/{owner}/{repo}/pulls/{pull_number}",
  "/repos/{owner}/{repo}/issues/{issue_number}/comments",
  "/repos/{owner}/{repo}/issues/comments/{comment_id}",
  "/repos/{owner}/{repo}/issues/comments/{comment_id}/reactions",
  "/repos/{owner}/{repo}/check-runs",
  "/repos/{owner}/{repo}/check-runs/{check_run_id}",
  "/repos/{owner}/{repo}/commits/{ref}/check-runs",
  "/repos/{owner}/{repo}/commits/{ref}/statuses",
  "/repos/{owner}/{repo}/deployments",
  "/repos/{owner}/{repo}/deployments/{deployment_id}/statuses",
  "/repos/{owner}/{repo}/statuses/{sha}",
  "/repos/{owner}/{repo}/contents/{path}",
  "/orgs/{org}/teams/{team_slug}/memberships/{username}",
  "/app/hook/deliveries",
  "/app/hook/deliveries/{delivery_id}",
  "/app/hook/deliveries/{delivery_id}/attempts",
  "/repos/{owner}/{repo}/hooks/{hook_id}/deliveries",
  "/repos/{owner}/{repo}/hooks/{hook_id}/deliveries/{delivery_id}",
  "/repos/{owner}/{repo}/hooks/{hook_id}/deliveries/{delivery_id}/attempts",
];
const out = { openapi: all.openapi, info: all.info, paths: {}, components: {} };
const keep = (value) => {
  if (value === null || typeof value !== "object") return;
  if (typeof value.$ref === "string") {
    const [kind, name] = value.$ref.replace("#/components/", "").split("/");
    const box = (out.components[kind] ??= {});
    if (!(name in box)) keep((box[name] = all.components[kind][name]));
  }
  for (const [key, v] of Object.entries(value)) {
    if (key === "examples" && value.schema) { delete value.examples; continue; }
    keep(v);
  }
};
for (const path of wanted) {
  if (!all.paths[path]) throw new Error("the API has no " + path);
  keep((out.paths[path] = all.paths[path]));
}
fs.writeFileSync("openapi.json", JSON.stringify(out));
const examples = JSON.parse(fs.readFileSync("package/api.github.com/index.json"));
fs.writeFileSync("examples.json", JSON.stringify(Object.fromEntries(examples.map((e) => [e.name, e.examples]))));
JS
mv package/schema.json "$dir/webhooks.schema.json"
mv openapi.json examples.json "$dir/"
printf '%s\n' "$stamp" >"$dir/stamp"
