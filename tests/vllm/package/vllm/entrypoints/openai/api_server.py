from tests.vllm.fake import main

main()
