{
  description = "CI runner image with build tools";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-24.05";

  outputs = { self, nixpkgs }: let
    system = "x86_64-linux";
    pkgs = nixpkgs.legacyPackages.${system};
  in {
    packages.${system}.ci-runner = pkgs.buildEnv {
      name = "mvm-ci-runner";
      paths = with pkgs; [
        bash
        coreutils
        git
        curl
        wget
        gnumake
        gcc
        nodejs
        python3
        docker-client
        jq
        cacert
        openssh
      ];
    };
  };
}
